"""Task vectors, codings, and the kernels that mix, sparsify and reduce them."""
