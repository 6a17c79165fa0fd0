// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/symbols.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string_view>

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "kernels/device/simt/sanitizer.h"

namespace memphis::kernels::simt {
namespace {

constexpr std::string_view kLocalPrefix = "_ZZ";  // of a name declared in a function
constexpr std::string_view kNamePrefix = "_Z";

std::string demangle(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), &std::free);
  return status == 0 ? text.get() : name;
}

// "void f<int>(float*)::scratch" -> "scratch"
std::string variable_name(const std::string& mangled) {
  const std::string full = demangle(mangled);
  const std::size_t at = full.rfind("::");
  return at == std::string::npos ? full : full.substr(at + 2);
}

// The program's own entry is the first that the loader reports.
dl_phdr_info program() {
  dl_phdr_info result{};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t /*bytes*/, void* out) {
        *static_cast<dl_phdr_info*>(out) = *info;
        return 1;
      },
      &result);
  return result;
}

}  // namespace

const Symbols& Symbols::instance() {
  static const Symbols symbols;
  return symbols;
}

std::uintptr_t Symbols::local_storage() {
  return reinterpret_cast<std::uintptr_t>(program().dlpi_tls_data);
}

Symbols::Symbols() {
  const dl_phdr_info info = program();
  for (int i = 0; i < info.dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info.dlpi_phdr[i];
    if (header.p_type == PT_TLS) {
      local_storage_bytes_ = header.p_memsz;
    }
    if (header.p_type == PT_LOAD) {
      image_begin_ = image_bytes_ == 0 ? info.dlpi_addr + header.p_vaddr : image_begin_;
      image_bytes_ = info.dlpi_addr + header.p_vaddr + header.p_memsz - image_begin_;
    }
  }

  const InputFile file("/proc/self/exe");
  const std::vector<std::byte> program_file = file.beginning(file.size());
  const auto* const bytes = reinterpret_cast<const char*>(program_file.data());
  const auto* const elf = reinterpret_cast<const ElfW(Ehdr)*>(bytes);
  const auto* const sections = reinterpret_cast<const ElfW(Shdr)*>(bytes + elf->e_shoff);
  const auto* const end = sections + elf->e_shnum;
  const auto* const table = std::find_if(
      sections, end, [](const ElfW(Shdr) & section) { return section.sh_type == SHT_SYMTAB; });
  if (table == end) {
    throw PreflightError(
        "this program has no symbol table (the simulated device finds kernels and their shared "
        "variables in it); do not strip it");
  }
  const char* const names = bytes + sections[table->sh_link].sh_offset;
  const auto* const symbols = reinterpret_cast<const ElfW(Sym)*>(bytes + table->sh_offset);

  struct Variable {
    SharedVariable variable;
    std::string mangled;
  };
  // A function with a gap has shared variables; what else is thread-local is the host's.
  std::vector<std::string> functions;
  std::vector<Variable> found;
  for (std::size_t i = 0; i < table->sh_size / sizeof(ElfW(Sym)); ++i) {
    const ElfW(Sym)& symbol = symbols[i];
    const std::string name = names + symbol.st_name;
    const unsigned type = symbol.st_info & 0xFU;
    if (type == STT_FUNC && symbol.st_shndx != SHN_UNDEF) {
      functions_.push_back({info.dlpi_addr + symbol.st_value, name});
    } else if (type == STT_TLS && name.compare(0, kLocalPrefix.size(), kLocalPrefix) == 0) {
      const std::size_t gap = name.rfind(kSharedGapName);
      if (gap == std::string::npos) {
        found.push_back({{symbol.st_value, symbol.st_size, variable_name(name)}, name});
      } else {
        functions.push_back(name.substr(0, name.find_last_not_of("0123456789", gap - 1) + 1));
      }
    }
  }
  std::erase_if(found, [&](const Variable& variable) {
    return std::none_of(functions.begin(), functions.end(), [&](const std::string& function) {
      return variable.mangled.compare(0, function.size(), function) == 0;
    });
  });
  std::sort(functions_.begin(), functions_.end(), [](const Function& a, const Function& b) {
    return a.address < b.address;
  });
  std::sort(found.begin(), found.end(), [](const Variable& a, const Variable& b) {
    return a.variable.offset < b.variable.offset;
  });
  for (Variable& variable : found) {
    variables_.push_back(std::move(variable.variable));
    mangled_.push_back(std::move(variable.mangled));
  }
}

Symbols::Kernel Symbols::kernel(const void* function) const {
  const auto address = reinterpret_cast<std::uintptr_t>(function);
  const auto found = std::lower_bound(
      functions_.begin(), functions_.end(), address, [](const Function& f, std::uintptr_t a) {
        return f.address < a;
      });
  if (found == functions_.end() || found->address != address) {
    return {.name = "kernel", .static_shared_bytes = 0};
  }
  // f is _Z<f>, its variable x is _ZZ<f>E<x>.
  const std::string local = std::string(kLocalPrefix) +
                            found->name.substr(std::min(found->name.size(), kNamePrefix.size())) +
                            "E";
  Kernel result{.name = short_name(demangle(found->name)), .static_shared_bytes = 0};
  for (std::size_t i = 0; i < mangled_.size(); ++i) {
    if (mangled_[i].compare(0, local.size(), local) == 0) {
      result.static_shared_bytes += variables_[i].bytes;
    }
  }
  return result;
}

}  // namespace memphis::kernels::simt
