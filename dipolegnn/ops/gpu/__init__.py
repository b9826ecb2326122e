"""The kernels of the operators for the GPU, written in Triton."""
