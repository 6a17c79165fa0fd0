// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace memphis {

// Of the page: its colours, in light and dark, and the few lines that show values under the pointer.
std::string_view page_style();
std::string_view page_script();

}  // namespace memphis
