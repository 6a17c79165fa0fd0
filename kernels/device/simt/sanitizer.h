// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

// What the executor asks of AddressSanitizer's runtime. All of it is optional: in a build without
// the sanitizers the switches cost nothing and places read as bare addresses.
namespace memphis::kernels::simt {

// Around a change of stacks: `own` keeps the state of the stack that is left until it is resumed;
// `bottom` and `bytes` are the stack that is entered, or come back as the one that was left.
void start_switch(void** own, const void* bottom, std::size_t bytes);
void finish_switch(void* own, const void** bottom, std::size_t* bytes);

// Source places of the code at `pc`, "rmsnorm.cu:57", innermost inlined function first.
struct Place {
  std::string function;
  std::string file;  // from the repository's root
  int line = 0;

  std::string text() const { return file + ":" + std::to_string(line); }
};
std::vector<Place> places_of(const void* pc);
// The line of a kernel that stands for them: the innermost of the project whose path does not begin
// with `except`, which are the dialect's.
Place kernel_place(const void* pc, std::string_view except = "kernels/device/simt/");

// A C++ name as a person would write it: without parameters, return type and this project's
// namespaces.
std::string short_name(std::string_view demangled);

}  // namespace memphis::kernels::simt
