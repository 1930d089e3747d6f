// What the operators that multiply a pruned input have in common: one call of them.
#pragma once

#include <string>

#include "instruction_set.h"
#include "operator_support.h"
#include "operator_table.h"
#include "product_kernels.h"

namespace nm_export {

// What is known of a node when a model is opened.
struct ProductNode {
  const ort::Api* api;
  ort::ElementType value_type;
  std::string name;  // "NMSparseMatMul node 'name'", for messages
  NodeInputs inputs;
  InstructionSet isa;
  size_t workers;
};

ProductNode make_product_node(const Operator& op, const ort::KernelInfo* info);

// The inputs that every product has. bias, token_shift and offset come one after the other.
constexpr size_t kValuesInput = 0;
constexpr size_t kWeightInput = 1;

// Shapes of values [..., K] and of the weight [K, O], which fit each other.
struct ProductShapes {
  Shape values;
  Shape weight;
};

ProductShapes product_shapes(const ProductNode& node, const ort::KernelContext* context);

// y = values weight + token_shift * offset + bias, with `bias_input` as the index of bias; `may_round` is that of
// SparseProduct.
void multiply(const ProductNode& node, ort::KernelContext* context, const ProductShapes& shapes, const Weight& weight,
              size_t bias_input, bool may_round);

// y has the shape of values, but for the last axis.
ort::Status* infer_product_shape(const ort::CustomOp* op, ort::ShapeInferContext* context);

}  // namespace nm_export
