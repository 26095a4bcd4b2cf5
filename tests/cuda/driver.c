// A driver (libcuda.so.1) that simulates a device on the CPU. Its memory is memory of the program, and a stream is
// done when it is synchronised. Kernels are translated from the PTX that the program loads, compiled, cached beside
// this library, and run thread by thread. The simulation covers the behaviour of a device, errors included, but not
// its speed. No real device has been compared with it.
//
// SIMULATED_CUDA_BYTES: memory of the device (default 16 GiB)
// SIMULATED_CUDA_FULL_AT: number of the allocation, from 1, that fails for lack of memory
// SIMULATED_CUDA_WAIT_MS: time that each synchronisation with a stream takes
// SIMULATED_CUDA_IDLE: skip kernels and products, to measure the program alone
// SIMULATED_CUDA_CALLS: file that gets the number of calls at the end
// SIMULATED_CUDA_INIT_ERROR: result of cuInit, such as 100 for no device
// SIMULATED_CUDA_MODULE_ERROR: result of loading kernels, such as 222 for a driver that is too old
#define _GNU_SOURCE
#include "kernel.h"

#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
#define LOCKED __attribute__((cleanup(unlock))) pthread_mutex_t *held = &lock; pthread_mutex_lock(held)
static void unlock(pthread_mutex_t **held) { pthread_mutex_unlock(*held); }

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : otherwise;
}

// Counts of calls, for SIMULATED_CUDA_CALLS.

struct call {
    char name[96];
    uint64_t times;
    struct call *next;
};
static struct call *calls;

static struct call *call_of(const char *name) {
    for (struct call *call = calls; call; call = call->next)
        if (strcmp(call->name, name) == 0) return call;
    struct call *call = calloc(1, sizeof *call);
    snprintf(call->name, sizeof call->name, "%s", name);
    call->next = calls;
    return calls = call;
}

__attribute__((destructor)) static void write_calls(void) {
    const char *path = getenv("SIMULATED_CUDA_CALLS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (struct call *call = calls; call; call = call->next) fprintf(file, "%lu\t%s\n", call->times, call->name);
    fclose(file);
}

// cuBLAS calls this. It has no lock of its own.
int simulated_product(void) {
    LOCKED;
    call_of("product")->times++;
    return getenv("SIMULATED_CUDA_IDLE") == NULL;
}

// The device and its context.

static int the_context, the_pool, a_stream, an_event;

CUresult cuInit(unsigned flags) { return (CUresult)setting("SIMULATED_CUDA_INIT_ERROR", CUDA_SUCCESS); }

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 1; break;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)&the_context;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice device) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = (CUcontext)&the_context;
    return CUDA_SUCCESS;
}
CUresult cuCtxDestroy(CUcontext context) { return CUDA_SUCCESS; }

// Work that is submitted to a stream runs at once.

static CUresult failure = CUDA_SUCCESS;  // of a kernel: the context is lost

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    *stream = (CUstream)&a_stream;
    return CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) { return CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream stream) {
    useconds_t wait = 1000 * (useconds_t)setting("SIMULATED_CUDA_WAIT_MS", 0);
    if (wait) usleep(wait);
    return failure;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) { return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
CUresult cuEventCreate(CUevent *event, unsigned flags) {
    *event = (CUevent)&an_event;
    return CUDA_SUCCESS;
}
CUresult cuEventDestroy(CUevent event) { return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream stream) { return failure; }

// Memory. The size of an allocation precedes it. The pool holds freed memory until it is trimmed.

enum { FRONT = 256, UNIT = 512, LARGE = 1 << 20, CHUNK = 32 << 20 };
struct front {
    uint64_t bytes;
    int from_pool;
    struct front *next;
};
static uint64_t used, used_most, held_by_pool, beside_pool, allocations;
// Large allocations that were freed are kept, because the system is slow to map pages.
static struct front *kept_large;

static uint64_t rounded_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }
static uint64_t device_bytes(void) { return (uint64_t)setting("SIMULATED_CUDA_BYTES", 16l << 30); }

static struct front *place_for(uint64_t bytes) {
    for (struct front **at = &kept_large; *at; at = &(*at)->next)
        if ((*at)->bytes == bytes) {
            struct front *found = *at;
            *at = found->next;
            return found;
        }
    return aligned_alloc(FRONT, rounded_up(FRONT + bytes, FRONT));
}

static void release_large(void) {
    while (kept_large) {
        struct front *next = kept_large->next;
        free(kept_large);
        kept_large = next;
    }
}

static CUresult take(CUdeviceptr *memory, size_t asked, int from_pool) {
    LOCKED;
    // The measurement of the limits allocates large buffers as often as time allows.
    if (asked <= 64 << 20) call_of("allocation")->times++;
    if (asked == 0) return CUDA_ERROR_INVALID_VALUE;
    uint64_t bytes = rounded_up(asked, UNIT);
    uint64_t pool = held_by_pool, beside = beside_pool + (from_pool ? 0 : bytes);
    if (from_pool && used + bytes > pool) pool = rounded_up(used + bytes, CHUNK);
    int full = ++allocations == (uint64_t)setting("SIMULATED_CUDA_FULL_AT", 0);
    if (full || pool + beside > device_bytes()) return CUDA_ERROR_OUT_OF_MEMORY;
    struct front *front = place_for(bytes);
    if (!front) return CUDA_ERROR_OUT_OF_MEMORY;
    *front = (struct front){bytes, from_pool, NULL};
    *memory = (CUdeviceptr)front + FRONT;
    // Memory of a device is not zeroed.
    memset((void *)*memory, 0x7b, bytes < LARGE ? bytes : LARGE);
    held_by_pool = pool;
    beside_pool = beside;
    if (from_pool && (used += bytes) > used_most) used_most = used;
    return CUDA_SUCCESS;
}

static CUresult give_back(CUdeviceptr memory) {
    LOCKED;
    if (!memory) return CUDA_SUCCESS;
    struct front *front = (struct front *)(memory - FRONT);
    *(front->from_pool ? &used : &beside_pool) -= front->bytes;
    if (front->bytes < LARGE) {
        free(front);
        return CUDA_SUCCESS;
    }
    front->next = kept_large;
    kept_large = front;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr *memory, size_t bytes) { return take(memory, bytes, 0); }
CUresult cuMemAllocAsync(CUdeviceptr *memory, size_t bytes, CUstream stream) { return take(memory, bytes, 1); }
CUresult cuMemFree(CUdeviceptr memory) { return give_back(memory); }
CUresult cuMemFreeAsync(CUdeviceptr memory, CUstream stream) { return give_back(memory); }

CUresult cuMemGetInfo(size_t *left, size_t *total) {
    LOCKED;
    *total = device_bytes();
    *left = *total - held_by_pool - beside_pool;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice device) {
    *pool = (CUmemoryPool)&the_pool;
    return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value) {
    LOCKED;
    switch (attribute) {
        case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: *(cuuint64_t *)value = used; break;
        case CU_MEMPOOL_ATTR_USED_MEM_HIGH: *(cuuint64_t *)value = used_most; break;
        case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: *(cuuint64_t *)value = held_by_pool; break;
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void *value) {
    LOCKED;
    // High-water marks can only be set to zero, which resets them to the memory in use.
    if (attribute != CU_MEMPOOL_ATTR_USED_MEM_HIGH || *(cuuint64_t *)value != 0) return CUDA_ERROR_INVALID_VALUE;
    used_most = used;
    return CUDA_SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t bytes) {
    LOCKED;
    release_large();
    uint64_t least = rounded_up(used > bytes ? used : bytes, CHUNK);
    if (least < held_by_pool) held_by_pool = least;
    return CUDA_SUCCESS;
}

static CUresult copy(const char *name, void *to, const void *from, size_t bytes) {
    LOCKED;
    call_of(name)->times++;
    if (failure == CUDA_SUCCESS) memcpy(to, from, bytes);
    return failure;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    return copy("copy to the device", (void *)to, from, bytes);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy("copy from the device", to, (void *)from, bytes);
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy("copy on the device", (void *)to, (void *)from, bytes);
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    LOCKED;
    call_of("fill of bytes")->times++;
    if (failure == CUDA_SUCCESS) memset((void *)to, value, bytes);
    return failure;
}

// Kernels.

struct module {
    char path[4096];  // of its PTX
};
struct function {
    kernel *run;
    int state_bytes, shared_bytes;
    struct call *launches;
};

// A folder beside this library.
static void kept(char *path, size_t size, const char *name) {
    Dl_info here;
    dladdr((void *)kept, &here);
    const char *slash = strrchr(here.dli_fname, '/');
    snprintf(path, size, "%.*s/kernels", (int)(slash - here.dli_fname), here.dli_fname);
    mkdir(path, 0777);
    snprintf(path + strlen(path), size - strlen(path), "/%s", name);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    LOCKED;
    long error = setting("SIMULATED_CUDA_MODULE_ERROR", CUDA_SUCCESS);
    if (error) return (CUresult)error;
    uint64_t hash = 14695981039346656037u;
    for (const char *c = image; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    struct module *made = malloc(sizeof *made);
    char name[64], temporary[4200];
    snprintf(name, sizeof name, "%016lx.ptx", hash);
    kept(made->path, sizeof made->path, name);
    if (access(made->path, R_OK) != 0) {
        snprintf(temporary, sizeof temporary, "%s.%d", made->path, getpid());
        FILE *file = fopen(temporary, "w");
        if (!file) return CUDA_ERROR_OPERATING_SYSTEM;
        fputs(image, file);
        fclose(file);
        rename(temporary, made->path);
    }
    *module = (CUmodule)made;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
    free(module);
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    LOCKED;
    const char *ptx = ((struct module *)module)->path;
    char library[4200], command[16384];
    snprintf(library, sizeof library, "%.*s-%s.so", (int)(strlen(ptx) - 4), ptx, name);
    if (access(library, R_OK) != 0) {
        snprintf(command, sizeof command, "python3 '" SOURCES "/translate.py' '%s' %s '%s'", ptx, name, library);
        if (system(command) != 0) return CUDA_ERROR_NOT_FOUND;
    }
    void *loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!loaded) return CUDA_ERROR_NOT_FOUND;
    struct function *found = malloc(sizeof *found);
    found->run = (kernel *)dlsym(loaded, "run");
    found->state_bytes = *(int *)dlsym(loaded, "state_bytes");
    found->shared_bytes = *(int *)dlsym(loaded, "shared_bytes");
    snprintf(command, sizeof command, "kernel %s", name);
    found->launches = call_of(command);
    *function = (CUfunction)found;
    return CUDA_SUCCESS;
}

// Runs the threads of a block in turn, each until it waits at a barrier. A thread continues when all threads of its
// barrier have arrived.
static CUresult run_waiting(struct function *function, struct block *block, struct thread *threads, int count) {
    int *waits = calloc(count, sizeof *waits);  // AT_BARRIER, AT_SHUFFLE, DONE; -1: can run
    uint32_t *taken = calloc(rounded_up(count, 32), sizeof *taken);
    char *registers = calloc(count, function->state_bytes);
    CUresult result = CUDA_SUCCESS;
    for (int i = 0; i < count; i++) {
        waits[i] = -1;
        threads[i].resume = 0;
        threads[i].registers = registers + (size_t)i * function->state_bytes;
    }
    for (int left = count; left > 0;) {
        int ran = 0, at_barrier = 0;
        for (int i = 0; i < count; i++) {
            if (waits[i] != -1) continue;
            ran = 1;
            waits[i] = function->run(&threads[i]);
            if (waits[i] == FAILED) {
                result = CUDA_ERROR_ASSERT;
                goto out;
            }
            left -= waits[i] == DONE;
        }
        if (!ran) {
            // Threads wait for threads that never arrive. A device would hang.
            result = CUDA_ERROR_LAUNCH_TIMEOUT;
            goto out;
        }
        for (int i = 0; i < count; i++) at_barrier += waits[i] == AT_BARRIER;
        for (int i = 0; i < count && at_barrier == left; i++)
            if (waits[i] == AT_BARRIER) waits[i] = -1;
        for (int warp = 0; warp < count; warp += 32) {
            int end = warp + 32 < count ? warp + 32 : count, all = 1;
            for (int i = warp; i < end; i++) all &= waits[i] == AT_SHUFFLE || waits[i] == DONE;
            for (int i = warp; i < end && all; i++) {
                if (waits[i] != AT_SHUFFLE) continue;
                taken[i] = threads[i].given;
                threads[i].taken = taken + warp;
                waits[i] = -1;
            }
        }
    }
out:
    free(waits);
    free(taken);
    free(registers);
    return result;
}

CUresult cuLaunchKernel(CUfunction asked, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned dynamic_bytes, CUstream stream, void **params, void **extra) {
    LOCKED;
    if (failure != CUDA_SUCCESS) return failure;
    struct function *function = (struct function *)asked;
    uint64_t count = (uint64_t)bx * by * bz;
    // The limits of all compute capabilities since 3.0.
    if (!gx || gx > 0x7fffffff || !gy || gy > 65535 || !gz || gz > 65535 || !count || count > 1024 || bz > 64 ||
        function->shared_bytes + dynamic_bytes > 48 << 10)
        return CUDA_ERROR_INVALID_VALUE;
    function->launches->times++;
    if (getenv("SIMULATED_CUDA_IDLE")) return CUDA_SUCCESS;
    struct block block = {.params = params, .ntid = {bx, by, bz}, .nctaid = {gx, gy, gz}};
    struct thread *threads = calloc(count, sizeof *threads);
    block.shared = malloc(function->shared_bytes + dynamic_bytes + 16);
    for (unsigned i = 0; i < count; i++)
        threads[i] = (struct thread){.block = &block, .tid = {i % bx, i / bx % by, i / bx / by}, .lane = i & 31};
    CUresult result = CUDA_SUCCESS;
    for (unsigned z = 0; z < gz; z++)
        for (unsigned y = 0; y < gy; y++)
            for (unsigned x = 0; x < gx && result == CUDA_SUCCESS; x++) {
                block.ctaid[0] = x, block.ctaid[1] = y, block.ctaid[2] = z;
                if (function->state_bytes) {
                    result = run_waiting(function, &block, threads, count);
                    continue;
                }
                for (unsigned i = 0; i < count && result == CUDA_SUCCESS; i++)
                    if (function->run(&threads[i]) == FAILED) result = CUDA_ERROR_ASSERT;
            }
    free(block.shared);
    free(threads);
    // An error in a kernel is reported by the following call.
    failure = result;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    static __thread char made[64];
    snprintf(made, sizeof made, "error %d of the simulated device", error);
    *text = made;
    return CUDA_SUCCESS;
}
