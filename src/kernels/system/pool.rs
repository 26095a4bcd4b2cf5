//! The driver's stream-ordered memory pool of a CUDA device (`cuMemAllocAsync`). The driver counts its bytes in use
//! and its reserved bytes. The workspaces of cuBLAS and the code of kernels are outside of the pool and not counted.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use candle_core::{
    CudaDevice,
    cuda_backend::cudarc::driver::{
        CudaStream, DriverError,
        result::{device, mem_pool},
        sys::{CUmemPool_attribute as Attribute, CUmemoryPool},
    },
};

pub struct Pool {
    stream: Arc<CudaStream>,
    handle: CUmemoryPool,
}

impl Pool {
    /// Returns the pool of a device.
    ///
    /// # Errors
    /// Returns an error if the driver has no pool.
    pub fn of(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        ensure!(context.has_async_alloc(), "this driver has no pool of memory for its device");
        context.bind_to_thread().map_err(failed)?;
        // SAFETY: an open device has a handle, which `get` finds by its number. A device has one current pool, which
        // lives as long as the driver is loaded.
        let handle = device::get(context.ordinal() as i32).and_then(|device| unsafe { device::get_mem_pool(device) });
        Ok(Self { handle: handle.map_err(failed)?, stream })
    }

    pub fn used_bytes(&self) -> Result<u64> {
        self.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    pub fn peak_bytes(&self) -> Result<u64> {
        self.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    pub fn reserved_bytes(&self) -> Result<u64> {
        self.get(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
    }

    /// Resets the high-water mark to the bytes in use.
    pub fn reset_peak(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed)?;
        let mut bytes = 0u64;
        // SAFETY: the pool belongs to the device. The driver reads this attribute as a u64, which lives through the
        // call.
        let set = unsafe {
            mem_pool::set_attribute(self.handle, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, (&raw mut bytes).cast())
        };
        set.map_err(failed)
    }

    /// Releases unused memory to the device.
    pub fn release(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed)?;
        // SAFETY: the pool belongs to the device. Memory in use stays in the pool.
        unsafe { mem_pool::trim_to(self.handle, 0) }.map_err(failed)
    }

    /// Free memory of the device, and unused memory of the pool.
    pub fn available_bytes(&self) -> Result<u64> {
        let (free, _) = self.stream.context().mem_get_info().map_err(failed)?;
        Ok(free as u64 + self.reserved_bytes()?.saturating_sub(self.used_bytes()?))
    }

    /// Waits for the work that was submitted to the device, then reads an attribute.
    fn get(&self, attribute: Attribute) -> Result<u64> {
        self.stream.synchronize().map_err(failed)?;
        let mut bytes = 0u64;
        // SAFETY: the pool belongs to the device. The driver writes this attribute as a u64, which lives through the
        // call.
        unsafe { mem_pool::get_attribute(self.handle, attribute, (&raw mut bytes).cast()) }.map_err(failed)?;
        Ok(bytes)
    }
}

fn failed(error: DriverError) -> anyhow::Error {
    anyhow!("the driver does not count the device's memory: {error}")
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    #[ignore = "needs a GPU"]
    fn what_tensors_take_is_counted_and_given_back() {
        let device = Device::new_cuda(0).expect("a GPU");
        let pool = Pool::of(device.as_cuda_device().expect("a GPU")).expect("a pool");
        let before = pool.used_bytes().expect("counted");
        pool.reset_peak().expect("reset");
        const BYTES: u64 = 64 << 20;
        let make = || Tensor::zeros(BYTES as usize / 4, DType::F32, &device);
        let kept = make().expect("a tensor");
        drop(make().expect("another"));
        assert_eq!(pool.used_bytes().expect("counted"), before + BYTES);
        assert_eq!(pool.peak_bytes().expect("counted"), before + 2 * BYTES);
        drop(kept);
        pool.release().expect("given back");
        assert_eq!(pool.used_bytes().expect("counted"), before);
        assert!(pool.reserved_bytes().expect("counted") < before + BYTES);
        assert!(pool.available_bytes().expect("counted") > BYTES);
    }
}
