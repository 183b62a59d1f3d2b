// What one writes without a library: a loop over each buffer, which the compiler may vectorise and reorder.
#include <cmath>
#include <cstddef>

namespace {

template <class T>
void sums(const T* const* buffers, const size_t* sizes, size_t n, int threads, double* abs, double* square) {
    for (size_t i = 0; i < n; ++i) {
        const T* x = buffers[i];
        // float32 would lose whole per cents of a large buffer. Small ones take one thread, which is quicker.
        double a = 0, s = 0;
#pragma omp parallel for simd reduction(+ : a, s) num_threads(threads) if (parallel : sizes[i] > 50000)
        for (size_t k = 0; k < sizes[i]; ++k) {
            const double w = x[k];
            a += std::fabs(w);
            s += w * w;
        }
        abs[i] = a;
        square[i] = s;
    }
}

}  // namespace

extern "C" {

void sums_float32(const float* const* buffers, const size_t* sizes, size_t n, int threads, double* abs,
                  double* square) {
    sums(buffers, sizes, n, threads, abs, square);
}

void sums_float64(const double* const* buffers, const size_t* sizes, size_t n, int threads, double* abs,
                  double* square) {
    sums(buffers, sizes, n, threads, abs, square);
}

}  // extern "C"
