#include "operators/ort_c_api.h"

namespace nm_export::ort {
namespace {

template <typename Function>
void read_entry(const ApiTable* table, size_t position, Function& entry) {
  using AnyFunction = void (*)();
  entry = reinterpret_cast<Function>(reinterpret_cast<const AnyFunction*>(table)[position]);
}

}  // namespace

Api load_api(const ApiTable* table) {
  Api api{};
  read_entry(table, 0, api.CreateStatus);
  read_entry(table, 26, api.CreateCustomOpDomain);
  read_entry(table, 27, api.CustomOpDomain_Add);
  read_entry(table, 28, api.AddCustomOpDomain);
  read_entry(table, 51, api.GetTensorMutableData);
  read_entry(table, 57, api.CreateTensorTypeAndShapeInfo);
  read_entry(table, 58, api.SetTensorElementType);
  read_entry(table, 59, api.SetDimensions);
  read_entry(table, 61, api.GetDimensionsCount);
  read_entry(table, 62, api.GetDimensions);
  read_entry(table, 63, api.GetSymbolicDimensions);
  read_entry(table, 65, api.GetTensorTypeAndShape);
  read_entry(table, 86, api.KernelInfoGetAttribute_int64);
  read_entry(table, 90, api.KernelContext_GetInput);
  read_entry(table, 91, api.KernelContext_GetOutput);
  read_entry(table, 93, api.ReleaseStatus);
  read_entry(table, 99, api.ReleaseTensorTypeAndShapeInfo);
  read_entry(table, 101, api.ReleaseCustomOpDomain);
  read_entry(table, 244, api.KernelInfo_GetNodeName);
  read_entry(table, 249, api.KernelInfoGetConstantInput_tensor);
  read_entry(table, 268, api.ShapeInferContext_GetInputTypeShape);
  read_entry(table, 270, api.ShapeInferContext_SetOutputTypeShape);
  read_entry(table, 271, api.SetSymbolicDimensions);
  read_entry(table, 274, api.KernelContext_ParallelFor);
  return api;
}

}  // namespace nm_export::ort
