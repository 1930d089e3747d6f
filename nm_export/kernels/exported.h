// Marks the functions that the shared library offers to its host; exported_symbols.map lists them once more.
#pragma once

#if defined(_WIN32)
#define NM_EXPORT_API __declspec(dllexport)
#else
#define NM_EXPORT_API __attribute__((visibility("default")))
#endif
