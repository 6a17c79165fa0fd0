// SPDX-License-Identifier: Apache-2.0
//
// What follows from the lines of layer_scale.patch, on the last of four ranks that share out all
// they can.
#include <cstdio>
#include <string>

#include "csrc/plan/activations.h"
#include "csrc/plan/memory.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/parameters.h"
#include "csrc/plan/share.h"

int main() {
  using namespace memphis;
  ModelConfig model;
  model.vocab_size = 512;
  model.num_layers = 4;
  model.d_model = 256;
  model.num_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = 64;
  model.ffn_dim = 512;
  model.num_experts = 4;
  model.experts_per_token = 2;
  const ParallelConfig parallel{.data = 2, .tensor = 2, .zero = 3};
  const Share share = make_share(model, parallel, Mesh(parallel, 4), 3);
  const ParameterPlan plan = plan_parameters(model, DType::bf16, share);

  for (const LogicalParameter& parameter : plan.logical) {
    if (parameter.name != "model.layers.3.layer_scale.weight") {
      continue;
    }
    const Segment& segment = plan.segments[static_cast<std::size_t>(parameter.segment)];
    std::printf("%s: %ld elements of %s, %ld of them with the optimizer's state here\n",
                parameter.name.c_str(),
                static_cast<long>(parameter.whole.num_elements()),
                std::string(name_of(segment.dtype)).c_str(),
                static_cast<long>(parameter.local(segment.owned).count));
    std::printf("gradients are summed over %s, and weights gathered for layer %d\n",
                std::string(name_of(segment.replicas)).c_str(),
                segment.layer);
  }
  const ParameterCounts counts = count_parameters(model);
  std::printf("vectors of a layer: %ld elements\n", static_cast<long>(counts.vectors));

  const Dims dims = make_dims(model, 2, 128, share);
  ActivationPlan activations = plan_activations(dims, DType::bf16, Keep::all_layers, Device::cpu);
  const std::size_t kept = activations.activation_bytes();
  activations.recompute = {.groups = {.block = true}, .num_layers = model.num_layers};
  std::printf("unscaled [%ld, %ld]: kept, or computed again; activations %zu or %zu bytes\n",
              static_cast<long>(activations.layer.unscaled_TD.spec.dims[0]),
              static_cast<long>(activations.layer.unscaled_TD.spec.dims[1]),
              kept,
              activations.activation_bytes());
}
