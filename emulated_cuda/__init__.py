"""A CUDA device that is emulated on the CPU, see docs/cuda.md. Import ``emulated_cuda.device`` before torch."""
