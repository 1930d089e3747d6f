// The part of ONNX Runtime's C ABI that this library uses, declared here because its wheels ship no headers.
//
// The C API is an append-only table of function pointers, so an entry is known by its position, and the positions
// below are the same in every ONNX Runtime since API version 17 (onnxruntime 1.17). Names are ONNX Runtime's own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nm_export::ort {

static_assert(sizeof(void*) == 8, "ONNX Runtime's ABI is declared for 64-bit systems only");

constexpr uint32_t kRequiredApiVersion = 17;
// OrtCustomOp may announce at most the runtime's own version; every field that is set here exists since 17.
constexpr uint32_t kCustomOpVersion = 17;

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorTypeAndShapeInfo;
struct ShapeInferContext;
struct CustomOp;
struct ApiTable;

enum ErrorCode : int {
  kFail = 1,
  kInvalidArgument = 2,
  kRuntimeException = 6,
  kNotImplemented = 9,
  kInvalidGraph = 10,
};

enum ElementType : int { kFloat = 1, kUInt8 = 2, kFloat16 = 10, kBFloat16 = 16, kUInt4 = 21 };
enum Characteristic : int { kInputRequired = 0 };
enum MemoryType : int { kMemoryDefault = 0 };

struct ApiBase {
  const ApiTable* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// The entries of the table that are used, by name. A function that returns Status* returns null on success.
struct Api {
  Status* (*CreateStatus)(ErrorCode, const char*);
  void (*ReleaseStatus)(Status*);

  Status* (*CreateCustomOpDomain)(const char*, CustomOpDomain**);
  Status* (*CustomOpDomain_Add)(CustomOpDomain*, const CustomOp*);
  Status* (*AddCustomOpDomain)(SessionOptions*, CustomOpDomain*);
  void (*ReleaseCustomOpDomain)(CustomOpDomain*);

  Status* (*GetTensorMutableData)(Value*, void**);
  Status* (*GetTensorTypeAndShape)(const Value*, TensorTypeAndShapeInfo**);
  Status* (*CreateTensorTypeAndShapeInfo)(TensorTypeAndShapeInfo**);
  Status* (*SetTensorElementType)(TensorTypeAndShapeInfo*, ElementType);
  Status* (*SetDimensions)(TensorTypeAndShapeInfo*, const int64_t*, size_t);
  Status* (*GetDimensionsCount)(const TensorTypeAndShapeInfo*, size_t*);
  Status* (*GetDimensions)(const TensorTypeAndShapeInfo*, int64_t*, size_t);
  Status* (*GetSymbolicDimensions)(const TensorTypeAndShapeInfo*, const char**, size_t);
  Status* (*SetSymbolicDimensions)(TensorTypeAndShapeInfo*, const char**, size_t);
  void (*ReleaseTensorTypeAndShapeInfo)(TensorTypeAndShapeInfo*);

  Status* (*KernelInfoGetAttribute_int64)(const KernelInfo*, const char*, int64_t*);
  Status* (*KernelInfo_GetNodeName)(const KernelInfo*, char*, size_t*);
  Status* (*KernelInfoGetConstantInput_tensor)(const KernelInfo*, size_t, int* is_constant, const Value**);
  Status* (*KernelContext_GetInput)(const KernelContext*, size_t, const Value**);
  Status* (*KernelContext_GetOutput)(KernelContext*, size_t, const int64_t*, size_t, Value**);
  Status* (*KernelContext_ParallelFor)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*);

  // The info that is returned is borrowed: it is not to be released.
  Status* (*ShapeInferContext_GetInputTypeShape)(const ShapeInferContext*, size_t, TensorTypeAndShapeInfo**);
  Status* (*ShapeInferContext_SetOutputTypeShape)(const ShapeInferContext*, size_t, const TensorTypeAndShapeInfo*);
};

// The first two entries, which every version of the API has.
inline Status* create_status(const ApiTable* table, ErrorCode code, const char* message) {
  using Function = Status* (*)(ErrorCode, const char*);
  return (*reinterpret_cast<const Function*>(table))(code, message);
}

// Reads the named entries of a table of API version 17 or later.
Api load_api(const ApiTable* table);

// OrtCustomOp: how an operator describes itself. The order of the fields is the ABI.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const ApiTable*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const ApiTable*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};
static_assert(sizeof(CustomOp) == 26 * 8, "OrtCustomOp has 26 fields of 8 bytes");

}  // namespace nm_export::ort
