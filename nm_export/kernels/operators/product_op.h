// What the operators that multiply a pruned input have in common: one call of them.
#pragma once

#include <string>

#include "operators/operator_support.h"
#include "operators/operator_table.h"
#include "product/sparse_matmul.h"
#include "product/tuner_registry.h"

namespace nm_export {

// What is known of a node when a model is opened, and what its calls remember.
struct ProductNode {
  ProductNode(const Operator& op, const ort::KernelInfo* info);

  const ort::Api& api;
  const ort::ElementType value_type;
  const std::string name;  // "NMSparseMatMul node 'name'", for messages
  const NodeInputs inputs;
  const InstructionSet& isa;
  const size_t workers;
  TunerCache tuners;
};

// The inputs that every product has. bias, token_shift and offset come one after the other.
constexpr size_t kValuesInput = 0;
constexpr size_t kWeightInput = 1;

// Shapes of values [..., K] and of the weight [K, O], which fit each other.
struct ProductShapes {
  Shape values;
  Shape weight;
};

ProductShapes product_shapes(const ProductNode& node, const ort::KernelContext* context);

// y = values weight + token_shift * offset + bias, with `bias_input` as the index of bias; `int8_activations` is that
// of SparseProduct.
void multiply(ProductNode& node, ort::KernelContext* context, const ProductShapes& shapes, const Weight& weight,
              size_t bias_input, bool int8_activations);

// y has the shape of values, but for the last axis.
ort::Status* infer_product_shape(const ort::CustomOp* op, ort::ShapeInferContext* context);

}  // namespace nm_export
