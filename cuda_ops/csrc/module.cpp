// The library is loaded by torch, not by Python. This empty module only lets `import cuda_ops._C` succeed too, where the
// headers of Python are installed; without them (Debian's python3 without python3-dev) the library is the same otherwise.

#if __has_include(<Python.h>)

#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
    static PyModuleDef definition{};
    definition.m_base = PyModuleDef_HEAD_INIT;
    definition.m_name = "_C";
    definition.m_size = -1;
    return PyModule_Create(&definition);
}

#endif
