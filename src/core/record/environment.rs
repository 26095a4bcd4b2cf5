//! The variables of the environment that change what Candle, its thread pools and the C library do.

/// A variable that records hold where it is set.
pub struct Variable {
    /// Name of the variable.
    pub name: &'static str,
    /// Its effect, as the end of a sentence.
    pub does: &'static str,
}

const fn variable(name: &'static str, does: &'static str) -> Variable {
    Variable { name, does }
}

/// The variable that tells glibc how to allocate memory.
pub const GLIBC_TUNABLES: &str = "GLIBC_TUNABLES";

/// Those that candle-core 0.11.1, rayon-core 1.13 and glibc 2.39 read.
pub const VARIABLES: [Variable; 20] = [
    variable("RAYON_NUM_THREADS", "sets the number of threads of rayon and of Candle's matrix products"),
    variable("RAYON_RS_NUM_CPUS", "sets the number of rayon's threads where RAYON_NUM_THREADS does not"),
    variable("CANDLE_NUM_THREADS", "sets the number of threads in Candle's own pool"),
    variable("CANDLE_CPU_MASK", "binds the threads of Candle's own pool to these CPUs"),
    variable(
        "CANDLE_CPU_AFFINITY",
        "binds the threads of Candle's own pool to the CPUs that Candle prefers, unless it is 0 or false",
    ),
    variable(
        "CANDLE_BARRIER_POOL_SPIN_LIMIT",
        "sets how often idle threads of Candle's own pool spin before they sleep",
    ),
    variable("CANDLE_DEQUANTIZE_ALL", "makes Candle widen quantised weights to f32 when it loads them, unless it is 0"),
    variable(
        "CANDLE_DEQUANTIZE_ALL_F16",
        "makes Candle widen quantised weights to f16 when it loads them, unless it is 0",
    ),
    variable("CANDLE_GRAD_DO_NOT_DETACH", "keeps the graph of the gradients, unless it is 0"),
    variable("MISTRALRS_FORCE_AVX2", "keeps Candle's quantised products from AVX-512 and AVX-VNNI if it is 1"),
    variable("MISTRALRS_FORCE_AVXVNNI", "makes Candle's quantised products use AVX-VNNI if it is 1"),
    variable(GLIBC_TUNABLES, "tells glibc how to allocate memory, among other things"),
    variable("MALLOC_ARENA_MAX", "limits the number of glibc's arenas"),
    variable("MALLOC_ARENA_TEST", "sets the number of arenas from which on glibc limits them"),
    variable("MALLOC_CHECK_", "makes glibc check its heap if its debugging library is loaded"),
    variable("MALLOC_MMAP_MAX_", "limits the number of blocks that glibc maps one by one"),
    variable("MALLOC_MMAP_THRESHOLD_", "sets the size in bytes from which on glibc maps a block by itself"),
    variable("MALLOC_PERTURB_", "makes glibc overwrite each block when it is allocated and when it is freed"),
    variable("MALLOC_TOP_PAD_", "sets the bytes that glibc takes from the kernel beyond what it needs"),
    variable("MALLOC_TRIM_THRESHOLD_", "sets the free bytes from which on glibc gives memory back to the kernel"),
];
