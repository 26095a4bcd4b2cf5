// The functions of cuBLAS that Candle calls, on the simulated device.
#include "kernel.h"

#include <cublas_v2.h>
#include <stdlib.h>

static int the_handle;

// A function of the driver: counts a product and returns whether to compute it.
int simulated_product(void);

cublasStatus_t cublasCreate(cublasHandle_t *handle) {
    *handle = (cublasHandle_t)&the_handle;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) { return CUBLAS_STATUS_SUCCESS; }

static double load(const void *from, long at, cudaDataType type) {
    switch (type) {
        case CUDA_R_64F: return ((const double *)from)[at];
        case CUDA_R_32F: return ((const float *)from)[at];
        case CUDA_R_16F: return half_to_float(((const uint16_t *)from)[at]);
        default: return bfloat_to_float(((const uint16_t *)from)[at]);
    }
}

static void store(void *to, long at, cudaDataType type, double value) {
    switch (type) {
        case CUDA_R_64F: ((double *)to)[at] = value; break;
        case CUDA_R_32F: ((float *)to)[at] = (float)value; break;
        case CUDA_R_16F: ((uint16_t *)to)[at] = half_of(value); break;
        default: ((uint16_t *)to)[at] = bfloat_of(value);
    }
}

// Larger products are filled with zeros: only the measurement of the device's rate requests them, and they would take
// minutes here.
static const double LARGEST_FLOP = 1e11;

static int known(cudaDataType type) {
    return type == CUDA_R_64F || type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
}

// C (m x n) = alpha A (m x k) B (k x n) + beta C, column-major. Sums are f64, more precise than cuBLAS.
static cublasStatus_t product(cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k, double alpha, const void *a,
                              cudaDataType atype, int lda, long stride_a, const void *b, cudaDataType btype, int ldb, long stride_b,
                              double beta, void *c, cudaDataType ctype, int ldc, long stride_c, int batches) {
    if (!known(atype) || !known(btype) || !known(ctype)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || batches < 0 || lda < (transa ? k : m) || ldb < (transb ? n : k) || ldc < m)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (2.0 * m * n * k > LARGEST_FLOP)
        k = 0;
    else if (!simulated_product())
        return CUBLAS_STATUS_SUCCESS;
    double *rows = malloc(sizeof(double) * ((long)m * k + k));
    if (!rows) return CUBLAS_STATUS_ALLOC_FAILED;
    double *column = rows + (long)m * k;
    for (long batch = 0; batch < batches; batch++) {
        for (long i = 0; i < m; i++)
            for (long p = 0; p < k; p++)
                rows[i * k + p] = load(a, batch * stride_a + (transa ? i * lda + p : p * lda + i), atype);
        for (long j = 0; j < n; j++) {
            for (long p = 0; p < k; p++)
                column[p] = load(b, batch * stride_b + (transb ? p * ldb + j : j * ldb + p), btype);
            for (long i = 0; i < m; i++) {
                double sum = 0;
                for (long p = 0; p < k; p++) sum += rows[i * k + p] * column[p];
                long at = batch * stride_c + j * ldc + i;
                store(c, at, ctype, alpha * sum + (beta ? beta * load(c, at, ctype) : 0));
            }
        }
    }
    free(rows);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n,
                                          int k, const void *alpha, const void *a, cudaDataType atype, int lda, long long stride_a,
                                          const void *b, cudaDataType btype, int ldb, long long stride_b, const void *beta, void *c,
                                          cudaDataType ctype, int ldc, long long stride_c, int batches, cublasComputeType_t compute,
                                          cublasGemmAlgo_t algorithm) {
    // The factors have the compute type.
    cudaDataType factor = compute == CUBLAS_COMPUTE_16F || compute == CUBLAS_COMPUTE_16F_PEDANTIC   ? CUDA_R_16F
                          : compute == CUBLAS_COMPUTE_64F || compute == CUBLAS_COMPUTE_64F_PEDANTIC ? CUDA_R_64F
                                                                                                     : CUDA_R_32F;
    return product(transa, transb, m, n, k, load(alpha, 0, factor), a, atype, lda, stride_a, b, btype, ldb, stride_b,
                   load(beta, 0, factor), c, ctype, ldc, stride_c, batches);
}

cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n,
                                         int k, const double *alpha, const double *a, int lda, long long stride_a, const double *b,
                                         int ldb, long long stride_b, const double *beta, double *c, int ldc, long long stride_c,
                                         int batches) {
    return product(transa, transb, m, n, k, *alpha, a, CUDA_R_64F, lda, stride_a, b, CUDA_R_64F, ldb, stride_b, *beta, c, CUDA_R_64F,
                   ldc, stride_c, batches);
}
