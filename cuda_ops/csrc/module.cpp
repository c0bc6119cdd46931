// The library is loaded by torch, not by Python. This empty module only lets `import cuda_ops._C` succeed too, where the
// headers of Python are installed; without them (Debian's python3 without python3-dev) the library is the same otherwise.

#if __has_include(<Python.h>)

#include <Python.h>

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() {
    return PyModule_Create(&definition);
}

#endif
