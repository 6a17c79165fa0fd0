// SPDX-License-Identifier: Apache-2.0
#include "kernels/permute/permute.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Elements that one chunk moves: about 10 us of work, well above the cost of handing it out.
constexpr std::int64_t kGrainElements = 32768;
constexpr std::int64_t kMaxExperts = 1024;  // a block of the GPU has a counter for each

std::int64_t grain_rows(std::int64_t row_length) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, row_length));
}

OpCheck check(const PermuteIndex& op, Stream stream) {
  OpCheck check("permute_index", stream);
  check.num_dims("experts_TK", op.experts_TK, 2);
  check.num_dims("chunk_counts_PE", op.chunk_counts_PE, 2);
  const std::int64_t T = op.experts_TK.dim(0);
  const std::int64_t K = op.experts_TK.dim(1);
  const std::int64_t E = op.chunk_counts_PE.dim(1);
  check.condition(E >= 1 && E <= kMaxExperts, [&] {
    return std::to_string(E) + " experts (a block of the GPU has a counter for each); use 1 to " +
           std::to_string(kMaxExperts);
  });
  check.condition(T * K <= std::numeric_limits<std::int32_t>::max(), [&] {
    return std::to_string(T * K) + " routed rows (their index is an i32); use fewer tokens";
  });
  check.tensor("slot_TK", op.slot_TK, {T, K}, DType::i32);
  check.tensor("source_R", op.source_R, {T * K}, DType::i32);
  check.tensor("offsets_E1", op.offsets_E1, {E + 1}, DType::i32);
  check.tensor("experts_TK", op.experts_TK, {T, K}, DType::i32);
  check.tensor("chunk_counts_PE", op.chunk_counts_PE, {kPermuteChunks, E}, DType::i32);
  return check;
}

OpCheck check(const ArrivalIndex& op, Stream stream) {
  OpCheck check("arrival_index", stream);
  check.num_dims("slot_R", op.slot_R, 1);
  check.num_dims("offsets_E1", op.offsets_E1, 1);
  check.num_dims("sent_offsets_PE1", op.sent_offsets_PE1, 2);
  const std::int64_t R = op.slot_R.dim(0);
  const std::int64_t E = op.offsets_E1.dim(0) - 1;
  const std::int64_t P = op.sent_offsets_PE1.dim(0);
  check.condition(E >= 1 && E <= kMaxExperts, [&] {
    return std::to_string(E) + " experts of a rank (each has blocks of the GPU); use 1 to " +
           std::to_string(kMaxExperts);
  });
  check.condition(op.rank >= 0 && op.rank < P, [&] {
    return "rank is " + std::to_string(op.rank) + " of " + std::to_string(P) +
           " (rows arrive at one of them); use 0 to " + std::to_string(P - 1);
  });
  check.tensor("slot_R", op.slot_R, {R}, DType::i32);
  check.tensor("source_R", op.source_R, {R}, DType::i32);
  check.tensor("offsets_E1", op.offsets_E1, {E + 1}, DType::i32);
  check.tensor("sent_offsets_PE1", op.sent_offsets_PE1, {P, P * E + 1}, DType::i32);
  return check;
}

OpCheck check(const Permute& op, Stream stream) {
  OpCheck check("permute", stream);
  check.num_dims("x_TD", op.x_TD, 2);
  check.num_dims("x_RD", op.x_RD, 2);
  const DType dtype = op.x_TD.dtype;
  const std::int64_t T = op.x_TD.dim(0);
  const std::int64_t D = op.x_TD.dim(1);
  const std::int64_t R = op.x_RD.dim(0);
  check.float_dtype("x_TD", dtype);
  check.condition(T == 0 ? R == 0 : R % T == 0, [&] {
    return std::to_string(R) + " rows for " + std::to_string(T) +
           " tokens (each token has K rows); R must be T * K";
  });
  check.tensor("x_TD", op.x_TD, {T, D}, dtype);
  check.tensor("x_RD", op.x_RD, {R, D}, dtype);
  check.tensor("source_R", op.source_R, {R}, DType::i32);
  if (op.slot_TK.present()) {
    check.num_dims("slot_TK", op.slot_TK, 2);
    const std::int64_t K = T == 0 ? op.slot_TK.dim(1) : R / T;
    check.tensor("slot_TK", op.slot_TK, {T, K}, DType::i32);
    check.untouched(static_cast<double>(op.slot_TK.bytes()));  // this or source_R is read
  }
  return check;
}

OpCheck check(const Unpermute& op, Stream stream) {
  OpCheck check("unpermute", stream);
  check.num_dims("y_TD", op.y_TD, 2);
  check.num_dims("slot_TK", op.slot_TK, 2);
  const DType dtype = op.y_TD.dtype;
  const std::int64_t T = op.y_TD.dim(0);
  const std::int64_t D = op.y_TD.dim(1);
  const std::int64_t K = op.slot_TK.dim(1);
  check.float_dtype("y_TD", dtype);
  check.condition(K >= 1, "slot_TK has no columns (a token's result is the sum of its K rows)");
  check.tensor("y_TD", op.y_TD, {T, D}, dtype);
  check.tensor("y_RD", op.y_RD, {T * K, D}, dtype);
  check.tensor("slot_TK", op.slot_TK, {T, K}, DType::i32);
  return check;
}

void check_copies(const OpCheck& check, std::int64_t copies) {
  check.condition(copies >= 1, [&] {
    return "copies is " + std::to_string(copies) +
           " (so many ranks share an expert); use 1 or more";
  });
}

OpCheck check(const SpreadChoices& op, Stream stream) {
  OpCheck check("spread_choices", stream);
  check.num_dims("chosen_TK", op.chosen_TK, 2);
  const std::int64_t T = op.chosen_TK.dim(0);
  const std::int64_t K = op.chosen_TK.dim(1);
  const DType dtype = accumulation_dtype(op.gates_TK.dtype);
  check_copies(check, op.copies);
  check.condition(op.experts_per_rank >= 1, [&] {
    return "experts_per_rank is " + std::to_string(op.experts_per_rank) +
           " (a rank has a slice of each of them); use 1 or more";
  });
  check.float_dtype("gates_TK", dtype);
  check.tensor("experts_TK", op.experts_TK, {T, K * op.copies}, DType::i32);
  check.tensor("gates_TK", op.gates_TK, {T, K * op.copies}, dtype);
  check.tensor("chosen_TK", op.chosen_TK, {T, K}, DType::i32);
  check.tensor("chosen_gates_TK", op.chosen_gates_TK, {T, K}, dtype);
  return check;
}

OpCheck check(const GatherChoices& op, Stream stream) {
  OpCheck check("gather_choices", stream);
  check.num_dims("dgates_TK", op.dgates_TK, 2);
  const std::int64_t T = op.dgates_TK.dim(0);
  const std::int64_t K = op.dgates_TK.dim(1);
  const DType dtype = accumulation_dtype(op.dgates_TK.dtype);
  check_copies(check, op.copies);
  check.float_dtype("dgates_TK", dtype);
  check.tensor("dgates_TK", op.dgates_TK, {T, K}, dtype);
  check.tensor("dspread_TK", op.dspread_TK, {T, K * op.copies}, dtype);
  return check;
}

// One thread: R is thousands where the rows that it indexes are millions of elements.
void index_rows(const PermuteIndex& op) {
  const std::int64_t R = op.experts_TK.num_elements();
  const std::int64_t E = op.chunk_counts_PE.dim(1);
  const auto* const experts = op.experts_TK.as<std::int32_t>();
  auto* const slot = op.slot_TK.as<std::int32_t>();
  auto* const source = op.source_R.as<std::int32_t>();
  auto* const offsets = op.offsets_E1.as<std::int32_t>();
  auto* const next = op.chunk_counts_PE.as<std::int32_t>();  // a row of it is enough here
  std::fill_n(offsets, E + 1, 0);
  for (std::int64_t a = 0; a < R; ++a) {
    if (experts[a] < 0 || experts[a] >= E) {
      throw ContractError("permute_index: expert " + std::to_string(experts[a]) +
                          " of assignment " + std::to_string(a) + " is outside [0, " +
                          std::to_string(E) +
                          ") (there is no such expert); route to one that exists");
    }
    ++offsets[experts[a] + 1];
  }
  for (std::int64_t e = 0; e < E; ++e) {
    offsets[e + 1] += offsets[e];
    next[e] = offsets[e];
  }
  for (std::int64_t a = 0; a < R; ++a) {
    const std::int32_t row = next[experts[a]]++;
    slot[a] = row;
    source[row] = static_cast<std::int32_t>(a);
  }
}

// One thread, as the index.
void index_arrivals(const ArrivalIndex& op) {
  const std::int64_t R = op.slot_R.dim(0);
  const std::int64_t E = op.offsets_E1.dim(0) - 1;
  const std::int64_t P = op.sent_offsets_PE1.dim(0);
  auto* const slot = op.slot_R.as<std::int32_t>();
  auto* const source = op.source_R.as<std::int32_t>();
  auto* const offsets = op.offsets_E1.as<std::int32_t>();
  // Of one sender, where the rows of each expert of this rank begin.
  const auto sent_from = [&](std::int64_t sender) {
    return op.sent_offsets_PE1.as<std::int32_t>() + sender * (P * E + 1) + op.rank * E;
  };
  for (std::int64_t sender = 0; sender < P; ++sender) {
    for (std::int64_t e = 0; e < E; ++e) {
      const std::int32_t* const sent = sent_from(sender) + e;
      if (sent[1] < sent[0]) {
        throw ContractError("arrival_index: offsets of rank " + std::to_string(sender) +
                            " fall from " + std::to_string(sent[0]) + " to " +
                            std::to_string(sent[1]) + " at expert " +
                            std::to_string(op.rank * E + e) +
                            " (rows lie by expert); send the offsets of a permute_index");
      }
    }
  }
  std::int64_t place = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    offsets[e] = static_cast<std::int32_t>(place);
    std::int64_t before = 0;  // rows that have come from the senders before
    for (std::int64_t sender = 0; sender < P; ++sender) {
      const std::int32_t* const sent = sent_from(sender);
      std::int64_t arrived = before + sent[e] - sent[0];
      for (std::int32_t row = sent[e]; row < sent[e + 1]; ++row, ++arrived, ++place) {
        if (arrived < R && place < R) {
          slot[arrived] = static_cast<std::int32_t>(place);
          source[place] = static_cast<std::int32_t>(arrived);
        }
      }
      before += sent[E] - sent[0];
    }
  }
  offsets[E] = static_cast<std::int32_t>(place);
}

template <class T>
void permute_rows(const Permute& op) {
  using Acc = Accumulator<T>;
  const std::int64_t R = op.x_RD.dim(0);
  const std::int64_t D = op.x_RD.dim(1);
  if (R == 0 || D == 0) {
    return;
  }
  const std::int64_t K = R / op.x_TD.dim(0);
  const auto* const source = op.source_R.as<std::int32_t>();
  const T* const x = op.x_TD.as<T>();
  T* const rows = op.x_RD.as<T>();
  const Acc scale = op.scale;
  parallel_ranges(R, grain_rows(D), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* const from = x + source[r] / K * D;
      T* const to = rows + r * D;
      if (op.scale == 1.0F) {
        std::memcpy(to, from, static_cast<std::size_t>(D) * sizeof(T));
        continue;
      }
#pragma omp simd
      for (std::int64_t d = 0; d < D; ++d) {
        to[d] = static_cast<T>(scale * static_cast<Acc>(from[d]));
      }
    }
  });
}

template <class T>
void unpermute_rows(const Unpermute& op) {
  using Acc = Accumulator<T>;
  constexpr std::int64_t kBlock = 512;  // columns whose sums stay in L1
  const std::int64_t D = op.y_TD.dim(1);
  const std::int64_t K = op.slot_TK.dim(1);
  const auto* const slot = op.slot_TK.as<std::int32_t>();
  const T* const rows = op.y_RD.as<T>();
  T* const y = op.y_TD.as<T>();
  const auto sum_columns = [&](std::int64_t t, std::int64_t first, std::int64_t count) {
    Acc sums[kBlock];
    for (std::int64_t k = 0; k < K; ++k) {
      const T* const row = rows + slot[t * K + k] * D + first;
      if (k == 0) {  // the sum starts with the first row and not with 0, which would turn -0 into 0
#pragma omp simd
        for (std::int64_t d = 0; d < count; ++d) {
          sums[d] = static_cast<Acc>(row[d]);
        }
        continue;
      }
#pragma omp simd
      for (std::int64_t d = 0; d < count; ++d) {
        sums[d] += static_cast<Acc>(row[d]);
      }
    }
    T* const out = y + t * D + first;
#pragma omp simd
    for (std::int64_t d = 0; d < count; ++d) {
      out[d] = static_cast<T>(sums[d]);
    }
  };
  parallel_ranges(op.y_TD.dim(0), grain_rows(D * K), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      for (std::int64_t d = 0; d < D; d += kBlock) {
        sum_columns(t, d, std::min(kBlock, D - d));
      }
    }
  });
}

// One thread, as the index.
template <class Gate>
void spread(const SpreadChoices& op) {
  const std::int64_t num_choices = op.chosen_TK.num_elements();
  const auto* const chosen = op.chosen_TK.as<std::int32_t>();
  const Gate* const chosen_gates = op.chosen_gates_TK.as<Gate>();
  auto* const experts = op.experts_TK.as<std::int32_t>();
  Gate* const gates = op.gates_TK.as<Gate>();
  for (std::int64_t a = 0; a < num_choices; ++a) {
    if (chosen[a] < 0) {
      throw ContractError("spread_choices: expert " + std::to_string(chosen[a]) +
                          " of assignment " + std::to_string(a) +
                          " is negative (there is no such expert); route to one that exists");
    }
    const std::int64_t share = chosen[a] / op.experts_per_rank;
    const std::int64_t local = chosen[a] % op.experts_per_rank;
    for (std::int64_t c = 0; c < op.copies; ++c) {
      experts[a * op.copies + c] =
          static_cast<std::int32_t>((share * op.copies + c) * op.experts_per_rank + local);
      gates[a * op.copies + c] = chosen_gates[a];
    }
  }
}

template <class Gate>
void gather(const GatherChoices& op) {
  const std::int64_t num_choices = op.dgates_TK.num_elements();
  const Gate* const dspread = op.dspread_TK.as<Gate>();
  Gate* const dgates = op.dgates_TK.as<Gate>();
  for (std::int64_t a = 0; a < num_choices; ++a) {
    const Gate* const terms = dspread + a * op.copies;
    Gate sum = terms[0];
    for (std::int64_t c = 1; c < op.copies; ++c) {
      sum += terms[c];
    }
    dgates[a] = sum;
  }
}

}  // namespace

void permute_index(const PermuteIndex& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::permute_index(op, stream);
  }
  index_rows(op);
}

void arrival_index(const ArrivalIndex& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::arrival_index(op, stream);
  }
  index_arrivals(op);
}

void permute(const Permute& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::permute(op, stream);
  }
  visit_float(op.x_TD.dtype, [&]<class T>() { permute_rows<T>(op); });
}

void unpermute(const Unpermute& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::unpermute(op, stream);
  }
  visit_float(op.y_TD.dtype, [&]<class T>() { unpermute_rows<T>(op); });
}

void spread_choices(const SpreadChoices& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::spread_choices(op, stream);
  }
  visit_float(op.gates_TK.dtype, [&]<class T>() { spread<Accumulator<T>>(op); });
}

void gather_choices(const GatherChoices& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::gather_choices(op, stream);
  }
  visit_float(op.dgates_TK.dtype, [&]<class T>() { gather<Accumulator<T>>(op); });
}

}  // namespace memphis::kernels
