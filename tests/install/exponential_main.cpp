// Reads numbers of type A from standard input and writes their exponentials, by the vectors of one instruction set.
#include <stdio.h>

#include "cpu/kernels/math.h"

template <class A>
void run() {
  A x[Vec<A>::lanes];
  while (fread(x, sizeof x, 1, stdin) == 1) {
    store(x, exponential<A>(load(x)));
    fwrite(x, sizeof x, 1, stdout);
  }
}

int main(int, char** arguments) { strcmp(arguments[1], "float32") ? run<double>() : run<float>(); }
