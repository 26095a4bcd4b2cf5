//! The tensors of safetensors files by the names that a model gives them. transformers reads the same files: some are saved
//! without the prefix of the base model, some join projections, some hold a tied embedding as the head only, and some hold experts in
//! MXFP4.

use std::{collections::HashMap, ops::Range, path::Path};

use anyhow::Result;
use candle_core::{DType, Device, Error, Shape, Tensor, safetensors::MmapedSafetensors};
use candle_nn::{Init, var_builder::SimpleBackend};
use half::bf16;
use rayon::prelude::*;
use safetensors::tensor::TensorView;

use super::checkpoint::map;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub const HEAD: &str = "lm_head.weight";

/// Tensors that hold several of a layer, with the parts in the order of their rows.
const JOINED: &[(&str, &[&str])] = &[
    (".self_attn.qkv_proj.", &[".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."]),
    (".mlp.gate_up_proj.", &[".mlp.gate_proj.", ".mlp.up_proj."]),
];

/// Ends of the names of two tensors that hold a third in MXFP4: its numbers, two in a byte, and the exponents of its blocks.
pub(crate) const MXFP4: [&str; 2] = ["_blocks", "_scales"];

/// Numbers of a block of MXFP4.
const BLOCK: usize = 32;

/// The numbers of four bits that are positive. The fourth bit is the sign.
const FOUR_BITS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The shapes of the tensors that hold one of shape (experts, inputs, outputs) in MXFP4, or `None` if it has no whole blocks.
pub(crate) fn shapes_in_mxfp4(shape: &[usize]) -> Option<[Vec<usize>; 2]> {
    let [experts, inputs, outputs] = *shape else { return None };
    let blocks = inputs.is_multiple_of(BLOCK).then_some(inputs / BLOCK)?;
    Some([vec![experts, outputs, blocks, BLOCK / 2], vec![experts, outputs, blocks]])
}

/// Memory-mapped files. Of tensors that several files hold, the last counts.
pub(crate) struct Stored {
    files: MmapedSafetensors,
    /// Names in the files by their names without the prefix of the base model.
    names: HashMap<String, String>,
}

/// A tensor of a model in a file.
pub(crate) struct Place<'a> {
    pub name: &'a str,
    pub view: TensorView<'a>,
    /// Its rows in the tensor of the file, if that holds others too.
    pub rows: Option<Range<usize>>,
}

/// The name of a tensor without the prefix of the base model, which a file may have more than once or not at all.
fn bare(name: &str) -> &str {
    name.strip_prefix("model.").map_or(name, bare)
}

impl Stored {
    /// Maps files.
    ///
    /// # Errors
    /// If a file is missing or corrupt.
    pub fn open(files: &[impl AsRef<Path>]) -> Result<Self> {
        let files = map(files)?;
        let names = files.tensors().into_iter().map(|(name, _)| (bare(&name).to_owned(), name)).collect();
        Ok(Self { files, names })
    }

    /// The names in the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.values().map(String::as_str)
    }

    /// The tensor of a file that has the name of a tensor of the model.
    pub fn exact(&self, name: &str) -> Option<Place<'_>> {
        let name = self.names.get(bare(name))?;
        Some(Place { name, view: self.files.get(name).ok()?, rows: None })
    }

    /// The place of a tensor with this many rows: a tensor of its own, or rows of a joined one. Of its parts, the first takes the
    /// rows that the others leave, which are of one size. A tied embedding may be stored as the head.
    pub fn place(&self, name: &str, count: usize) -> Option<Place<'_>> {
        if let Some(place) = self.exact(name) {
            return Some(place);
        }
        if bare(name) == bare(EMBEDDING) {
            return self.exact(HEAD);
        }
        JOINED.iter().find_map(|(joined, parts)| {
            let own = parts.iter().position(|part| name.contains(part))?;
            let place = self.exact(&name.replace(parts[own], joined))?;
            let total = *place.view.shape().first()?;
            let start = if own == 0 { 0 } else { total.checked_sub((parts.len() - own) * count)? };
            (start + count <= total).then_some(Place { rows: Some(start..start + count), ..place })
        })
    }

    /// The places of the tensors that hold another in MXFP4.
    pub fn in_mxfp4(&self, name: &str) -> Option<[Place<'_>; 2]> {
        let [blocks, scales] = MXFP4.map(|end| self.exact(&format!("{name}{end}")));
        Some([blocks?, scales?])
    }

    /// The values of a tensor (experts, inputs, outputs) that the files hold in MXFP4. They are exact in bf16.
    fn unpacked(&self, name: &str, shape: &[usize]) -> Option<Vec<bf16>> {
        let (places, shapes) = (self.in_mxfp4(name)?, shapes_in_mxfp4(shape)?);
        if places.iter().zip(&shapes).any(|(place, shape)| place.view.shape() != shape) {
            return None;
        }
        let [blocks, scales] = places.map(|place| place.view.data());
        let (inputs, outputs) = (shape[1], shape[2]);
        let mut values = vec![bf16::ZERO; shape.iter().product()];
        values.par_chunks_mut(inputs * outputs).enumerate().for_each(|(expert, values)| {
            for (block, values) in values.chunks_mut(BLOCK * outputs).enumerate() {
                for output in 0..outputs {
                    let place = (expert * outputs + output) * (inputs / BLOCK) + block;
                    let scale = 2f32.powi(i32::from(scales[place]) - 127);
                    for (pair, byte) in blocks[place * BLOCK / 2..][..BLOCK / 2].iter().enumerate() {
                        for (input, bits) in [(2 * pair, byte & 15), (2 * pair + 1, byte >> 4)] {
                            let number = FOUR_BITS[usize::from(bits & 7)] * scale;
                            values[input * outputs + output] = bf16::from_f32(if bits < 8 { number } else { -number });
                        }
                    }
                }
            }
        });
        Some(values)
    }

    /// The type and the bytes of a tensor of this shape.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Option<(DType, &[u8])> {
        let place = self.place(name, *shape.first()?)?;
        let (data, stored) = (place.view.data(), place.view.shape());
        let rows = place.rows.unwrap_or(0..stored[0]);
        let row_bytes = data.len() / stored[0].max(1);
        let is_same = rows.len() == shape[0] && stored[1..] == shape[1..];
        let dtype = DType::try_from(place.view.dtype()).ok()?;
        is_same.then(|| (dtype, &data[rows.start * row_bytes..rows.end * row_bytes]))
    }
}

impl SimpleBackend for Stored {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        if let Some(values) = self.unpacked(name, shape.dims()) {
            return Tensor::from_vec(values, shape, device)?.to_dtype(dtype);
        }
        let Some((stored, bytes)) = self.bytes(name, shape.dims()) else {
            return Err(Error::CannotFindTensor { path: name.to_owned() }.bt());
        };
        Tensor::from_raw_buffer(bytes, stored, shape.dims(), device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let place = self.exact(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() }.bt())?;
        self.files.load(place.name, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.place(name, 1).is_some()
    }
}
