// How a product is computed: what was found out about products of its kind, in this process.
#pragma once

#include "sparse_matmul.h"
#include "timed_choice.h"

namespace nm_export {

// All layers of a model, and all sessions, learn from each other: a model of 30 layers has tried all ways after some of
// them. Sessions with other numbers of threads do too; where their times differ, those of the faster one count, because
// a choice looks at shorter times. `ways` is how many there are to choose from. Never freed. Throws std::bad_alloc.
TimedChoice& choice_of(const InstructionSet& isa, const SparseProduct& product, size_t ways);

}  // namespace nm_export
