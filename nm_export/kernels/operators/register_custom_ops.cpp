// The entry points of the library.

#include <cstdio>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "exported.h"
#include "operators/nm_topk_op.h"
#include "operators/ort_c_api.h"
#include "operators/sparse_matmul_nbits_op.h"
#include "operators/sparse_matmul_op.h"

namespace nm_export {
namespace {

struct Domain {
  ort::Api api;
  std::vector<Operator> operators;
  ort::CustomOpDomain* handle = nullptr;

  Domain(const ort::ApiTable* table, bool has_4_bits) : api(ort::load_api(table)) {
    const ort::ElementType value_types[] = {ort::kFloat, ort::kFloat16, ort::kBFloat16};
    for (const ort::ElementType type : value_types) {
      operators.push_back(make_nm_topk_op(&api, type));
      operators.push_back(make_nm_sparse_matmul_op(&api, type, type));
      if (type != ort::kFloat) operators.push_back(make_nm_sparse_matmul_op(&api, ort::kFloat, type));
      for (const ort::ElementType scale_type : {ort::kFloat, ort::kFloat16}) {
        operators.push_back(make_nm_sparse_matmul_nbits_op(&api, type, ort::kUInt8, scale_type));
        if (has_4_bits) operators.push_back(make_nm_sparse_matmul_nbits_op(&api, type, ort::kUInt4, scale_type));
      }
    }
  }
  Domain(const Domain&) = delete;
  Domain& operator=(const Domain&) = delete;
};

ort::Status* fill(Domain& domain) {
  if (ort::Status* status = domain.api.CreateCustomOpDomain("ai.nm_export", &domain.handle)) return status;
  for (const Operator& op : domain.operators) {
    if (ort::Status* status = domain.api.CustomOpDomain_Add(domain.handle, &op)) return status;
  }
  return nullptr;
}

// ONNX Runtime knows tensors of 4 bits from 1.19 on. Not asked of GetApi, which prints a complaint where it has no such
// version.
bool knows_4_bits(const char* version) {
  int major = 0, minor = 0;
  return std::sscanf(version, "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= 19);
}

// Several copies of ONNX Runtime in one process (onnxruntime and onnxruntime-genai) have an API each but share this
// library. Sessions hold on to the domain, whose end is not known here, so it is never freed.
ort::Status* domain_of(const ort::ApiTable* table, bool has_4_bits, Domain** result) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const ort::ApiTable*, Domain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  Domain*& domain = domains[table];
  if (domain == nullptr) {
    auto* made = new Domain(table, has_4_bits);
    if (ort::Status* status = fill(*made)) return status;
    domain = made;
  }
  *result = domain;
  return nullptr;
}

}  // namespace
}  // namespace nm_export

extern "C" {

// Adds the operators of the domain ai.nm_export to the options. Called by ONNX Runtime.
NM_EXPORT_API nm_export::ort::Status* RegisterCustomOps(nm_export::ort::SessionOptions* options,
                                                        const nm_export::ort::ApiBase* base) {
  using namespace nm_export;
  const ort::ApiTable* table = base->GetApi(ort::kRequiredApiVersion);
  if (table == nullptr) {
    std::string message = "nm_export's operators need onnxruntime >= 1.17; this is ";
    message += base->GetVersionString();
    return ort::create_status(base->GetApi(1), ort::kNotImplemented, message.c_str());
  }
  try {
    Domain* domain = nullptr;
    if (ort::Status* status = domain_of(table, knows_4_bits(base->GetVersionString()), &domain)) return status;
    return domain->api.AddCustomOpDomain(options, domain->handle);
  } catch (const std::bad_alloc&) {
    return ort::create_status(table, ort::kRuntimeException, "nm_export: out of memory");
  }
}

NM_EXPORT_API const char* nm_export_ops_version() { return NM_EXPORT_VERSION; }
}
