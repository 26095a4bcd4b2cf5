//! The tensors of safetensors files by the names that a model gives them. transformers reads the same files: some are saved
//! without the prefix of the base model, some join projections, and some hold a tied embedding as the head only.

use std::{collections::HashMap, ops::Range, path::Path};

use anyhow::Result;
use candle_core::{DType, Device, Error, Shape, Tensor, safetensors::MmapedSafetensors};
use candle_nn::{Init, var_builder::SimpleBackend};
use safetensors::tensor::TensorView;

use super::checkpoint::map;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// Tensors that hold several of a layer, with the parts in the order of their rows.
const JOINED: &[(&str, &[&str])] = &[
    (".self_attn.qkv_proj.", &[".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."]),
    (".mlp.gate_up_proj.", &[".mlp.gate_proj.", ".mlp.up_proj."]),
];

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
