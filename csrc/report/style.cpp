// SPDX-License-Identifier: Apache-2.0
#include "csrc/report/style.h"

namespace memphis {

std::string_view page_style() {
  // The switch inverts what the system prefers. Colours of curves are told apart by those who see no
  // red or green, on both grounds.
  return R"css(
:root{--ground:#fbfaf7;--card:#fff;--ink:#1d2230;--soft:#687084;--line:#e3e1da;--bad:#c02b3c;--odd:#b06f00;
--much:#c2452d;--little:#2f6fb3;--c0:#1f66c1;--c1:#d9730d;--c2:#158a6e;--c3:#a63a8f;--c4:#8a6d00;--c5:#5b55c8;--c6:#c0392b;--c7:#4c7a1e}
@media(prefers-color-scheme:dark){:root{--ground:#12151c;--card:#1a1f29;--ink:#e7e9ee;--soft:#97a0b3;--line:#2c3341;--bad:#ff7b86;--odd:#f0b24a;
--much:#f0714f;--little:#5b9fe6;--c0:#6aa9ff;--c1:#ffa24d;--c2:#4fd0ae;--c3:#e887d2;--c4:#dcc04a;--c5:#a49fff;--c6:#ff8f80;--c7:#9bd05e}}
@media(prefers-color-scheme:light){:root:has(#theme:checked){--ground:#12151c;--card:#1a1f29;--ink:#e7e9ee;--soft:#97a0b3;--line:#2c3341;--bad:#ff7b86;--odd:#f0b24a;
--much:#f0714f;--little:#5b9fe6;--c0:#6aa9ff;--c1:#ffa24d;--c2:#4fd0ae;--c3:#e887d2;--c4:#dcc04a;--c5:#a49fff;--c6:#ff8f80;--c7:#9bd05e}}
@media(prefers-color-scheme:dark){:root:has(#theme:checked){--ground:#fbfaf7;--card:#fff;--ink:#1d2230;--soft:#687084;--line:#e3e1da;--bad:#c02b3c;--odd:#b06f00;
--much:#c2452d;--little:#2f6fb3;--c0:#1f66c1;--c1:#d9730d;--c2:#158a6e;--c3:#a63a8f;--c4:#8a6d00;--c5:#5b55c8;--c6:#c0392b;--c7:#4c7a1e}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1560px;margin:0 auto;padding:28px 32px 60px}
header{display:flex;align-items:baseline;gap:18px;flex-wrap:wrap;margin-bottom:18px}
h1{font-size:25px;margin:0;letter-spacing:-.01em}
h2{font-size:18px;margin:36px 0 12px}
.switch{margin-left:auto;color:var(--soft);font-size:13px;cursor:pointer}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(126px,1fr));gap:12px;margin:10px 0 4px}
.card,figure,.findings,.box{background:var(--card);border:1px solid var(--line);border-radius:10px}
.card{padding:10px 14px}.card span{display:block;color:var(--soft);font-size:12px}
.card b{font-size:20px;font-weight:600;font-variant-numeric:tabular-nums}.card i{font-style:normal;color:var(--soft);font-size:12px;display:block}
.findings{list-style:none;margin:0;padding:4px 0}
.findings li{padding:11px 18px;border-left:4px solid var(--line);border-bottom:1px solid var(--line)}
.findings li:last-child{border-bottom:0}
.findings li.bad{border-left-color:var(--bad)}.findings li.odd{border-left-color:var(--odd)}
.findings b{font-weight:650}.bad>b:first-child{color:var(--bad)}.odd>b:first-child{color:var(--odd)}
.findings .at{font-variant-numeric:tabular-nums;color:var(--soft);margin-left:10px}
.findings .num{margin-left:10px;font-variant-numeric:tabular-nums}
.findings p{margin:2px 0 0;color:var(--soft);font-size:14px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,540px),1fr));gap:14px}
figure{margin:0;padding:12px 14px 8px;position:relative;break-inside:avoid}
figcaption{font-size:14px;margin-bottom:2px}figcaption span{color:var(--soft);font-size:12px;margin-left:6px}
svg{display:block;width:100%;height:auto}
.grid{stroke:var(--line);stroke-width:1}.tick,.cell{fill:var(--soft);font-size:11.5px;font-variant-numeric:tabular-nums}
.cell{fill:var(--ink);font-size:11px}
.curve{fill:none;stroke:currentColor;stroke-width:1.6;stroke-linejoin:round}.faint{stroke-dasharray:5 4;opacity:.75}
.dot{fill:currentColor}.area{fill:currentColor;fill-opacity:.8}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}
.mark line{stroke:var(--soft);stroke-dasharray:2 4}.mark path{fill:var(--odd)}.mark.bad line{stroke:var(--bad)}.mark.bad path{fill:var(--bad)}
.much{fill:var(--much)}.little{fill:var(--little)}.none{fill:none;stroke:var(--line)}
.heat rect{stroke:var(--line);stroke-width:.4}
.keys{margin:2px 0 4px 50px}.key{display:inline-block;margin-right:16px;font-size:13px}
.key::before{content:"";display:inline-block;width:14px;height:4px;border-radius:2px;background:currentColor;margin-right:6px;vertical-align:middle}
.key.faint{opacity:1}.key.faint::before{background:repeating-linear-gradient(90deg,currentColor 0 4px,transparent 4px 7px)}
.what{margin:2px 0 4px;color:var(--soft);font-size:12.5px}
.box{padding:12px 16px;margin-bottom:14px;overflow-x:auto}.box h3{font-size:14px;margin:0 0 8px}
table{border-collapse:collapse;font-size:13.5px;margin-top:8px}td,th{padding:3px 16px 3px 0;text-align:left;vertical-align:top}th{color:var(--soft);font-weight:500}
.n{text-align:right;font-variant-numeric:tabular-nums}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.45 ui-monospace,"DejaVu Sans Mono",monospace;margin:6px 0;max-height:340px;overflow:auto}
details{margin:6px 0}summary{cursor:pointer;color:var(--soft)}
.tip{position:absolute;pointer-events:none;background:var(--ink);color:var(--ground);font-size:12px;padding:4px 8px;border-radius:6px;white-space:pre;z-index:1;font-variant-numeric:tabular-nums}
.cross{stroke:var(--soft);stroke-width:1}
footer{margin-top:36px;color:var(--soft);font-size:12.5px}
)css";
}

std::string_view page_script() {
  return R"js(
for(const svg of document.querySelectorAll("svg.plot")){
 const curves=[...svg.querySelectorAll(".curve")].map(c=>({name:c.dataset.name,low:+c.dataset.x0,high:+c.dataset.x1,
  steps:c.dataset.steps.split(" ").map(Number),values:c.dataset.values.split(" ")}));
 if(!curves.length)continue;
 const figure=svg.closest("figure"),tip=document.createElement("div");tip.className="tip";tip.hidden=true;figure.append(tip);
 const cross=document.createElementNS("http://www.w3.org/2000/svg","line");cross.setAttribute("class","cross");cross.setAttribute("y1",12);cross.setAttribute("y2",216);
 const hide=()=>{tip.hidden=true;cross.remove()};
 svg.addEventListener("pointerleave",hide);
 svg.addEventListener("pointermove",event=>{
  const box=svg.getBoundingClientRect(),x=(event.clientX-box.left)/box.width*720,share=(x-58)/(720-14-58);
  if(share<0||share>1)return hide();
  const step=curves[0].low+share*(curves[0].high-curves[0].low);
  let lines=[];
  for(const curve of curves){
   let a=0,b=curve.steps.length-1;
   while(b-a>1){const m=a+b>>1;curve.steps[m]<step?a=m:b=m}
   const i=Math.abs(curve.steps[a]-step)<=Math.abs(curve.steps[b]-step)?a:b;
   lines.push(`${curve.name}  step ${curve.steps[i]}:  ${curve.values[i]}`);
  }
  tip.textContent=lines.join("\n");tip.hidden=false;
  cross.setAttribute("x1",x);cross.setAttribute("x2",x);svg.append(cross);
  const frame=figure.getBoundingClientRect(),left=event.clientX-frame.left;
  tip.style.top=event.clientY-frame.top+14+"px";
  tip.style.left=Math.max(4,left+tip.offsetWidth+20>frame.width?left-tip.offsetWidth-12:left+14)+"px";
 });
}
)js";
}

}  // namespace memphis
