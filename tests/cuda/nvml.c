// NVML (libnvidia-ml.so.1) of the simulated device, with the counters of a busy GPU.
//
// SIMULATED_NVML_LACKS     a missing counter: clocks, temperature, power, energy or reasons
// SIMULATED_NVML_USED      bytes of memory in use, 0 by default
// SIMULATED_NVML_REASONS   throttling reasons as NVML's bits: 4 is the power limit
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
enum { CLOCK_MEMORY = 2 };
static const unsigned POWER_MILLIWATTS = 350000;
static const char NAME[] = "simulated device", UUID[] = "GPU-51310a7e-0000-0000-0000-000000000000";
static int the_device;

static int text(char *to, unsigned length, const char *of) {
    snprintf(to, length, "%s", of);
    return SUCCESS;
}

static int has(const char *counter) {
    const char *lacks = getenv("SIMULATED_NVML_LACKS");
    return lacks && strcmp(lacks, counter) == 0 ? NOT_SUPPORTED : SUCCESS;
}

static int number(const char *counter, unsigned *to, unsigned value) {
    *to = value;
    return has(counter);
}

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return "an error of the simulated device"; }
int nvmlSystemGetDriverVersion(char *to, unsigned length) { return text(to, length, "simulated"); }
int nvmlDeviceGetCount_v2(unsigned *count) { return number("", count, 1); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = &the_device;
    return index == 0 ? SUCCESS : INVALID_ARGUMENT;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = &the_device;
    return strcmp(uuid, UUID) == 0 ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetName(void *device, char *to, unsigned length) { return text(to, length, NAME); }
int nvmlDeviceGetUUID(void *device, char *to, unsigned length) { return text(to, length, UUID); }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = 9, *minor = 0;
    return SUCCESS;
}

struct memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    const char *bytes = getenv("SIMULATED_CUDA_BYTES");
    const char *used = getenv("SIMULATED_NVML_USED");
    memory->total = bytes ? strtoull(bytes, NULL, 10) : 16ull << 30;
    memory->used = used ? strtoull(used, NULL, 10) : 0;
    memory->reserved = 0, memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) { return number("clocks", mhz, clock == CLOCK_MEMORY ? 3201 : 1500); }
int nvmlDeviceGetMaxClockInfo(void *device, int clock, unsigned *mhz) { return number("clocks", mhz, clock == CLOCK_MEMORY ? 3201 : 1980); }
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) { return number("temperature", celsius, 61); }
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { return number("power", milliwatts, POWER_MILLIWATTS); }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) { return number("power", milliwatts, 700000); }

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = (unsigned long long)((now.tv_sec + now.tv_nsec * 1e-9) * POWER_MILLIWATTS);
    return has("energy");
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    const char *bits = getenv("SIMULATED_NVML_REASONS");
    *reasons = bits ? strtoull(bits, NULL, 0) : 0;
    return has("reasons");
}
