// The functions of cuRAND that Candle calls, on the simulated device.
#include <curand.h>
#include <math.h>
#include <stdint.h>

static int the_handle;
static uint64_t state;

curandStatus_t curandCreateGenerator(curandGenerator_t *generator, curandRngType_t type) {
    *generator = (curandGenerator_t)&the_handle;
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandDestroyGenerator(curandGenerator_t generator) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetStream(curandGenerator_t generator, cudaStream_t stream) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t generator, unsigned long long seed) {
    state = seed;
    return CURAND_STATUS_SUCCESS;
}

// In (0, 1], by SplitMix64.
static double uniform(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (double)(((z ^ (z >> 31)) >> 11) + 1) / (double)(1ull << 53);
}

static double normal(double mean, double deviation) {
    return mean + deviation * sqrt(-2 * log(uniform())) * cos(2 * M_PI * uniform());
}

curandStatus_t curandGenerateUniform(curandGenerator_t generator, float *out, size_t count) {
    while (count--) *out++ = (float)uniform();
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandGenerateUniformDouble(curandGenerator_t generator, double *out, size_t count) {
    while (count--) *out++ = uniform();
    return CURAND_STATUS_SUCCESS;
}
// As in the library, normal numbers come in pairs.
curandStatus_t curandGenerateNormal(curandGenerator_t generator, float *out, size_t count, float mean, float deviation) {
    if (count % 2) return CURAND_STATUS_LENGTH_NOT_MULTIPLE;
    while (count--) *out++ = (float)normal(mean, deviation);
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandGenerateNormalDouble(curandGenerator_t generator, double *out, size_t count, double mean, double deviation) {
    if (count % 2) return CURAND_STATUS_LENGTH_NOT_MULTIPLE;
    while (count--) *out++ = normal(mean, deviation);
    return CURAND_STATUS_SUCCESS;
}
