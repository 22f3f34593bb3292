//! Which weights LoRAs change, and the changed weight.
//!
//! Formula and rounding: `fuse_loras.py` of Lightricks' ltx-core, v1.2.0, as it runs on NVIDIA. Everything is rounded to
//! bf16 where that does, but for weights that are not bf16, of which it would leave no more than bf16.

use std::collections::BTreeMap;
use std::sync::Arc;

use mlx::{Array, Dtype};
use safetensors::Dtype as Stored;

use super::keys::Names;
use super::{Lora, Module};
use crate::checkpoint::header::dtype;
use crate::checkpoint::{Checkpoint, Component, File, TensorInfo};
use crate::error::{Error, Result};
use crate::nn::Linear;

/// Components that a LoRA can change.
const CHANGED: [Component; 3] = [Component::Dit, Component::Connector, Component::Projection];

/// How a LoRA meets a model.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// Updates that fit, by component.
    pub matched: BTreeMap<&'static str, usize>,
    /// Names, in the LoRA, of updates for weights that the model does not have.
    pub unmatched: Vec<String>,
    /// How many of those weights are packed or 8-bit floats.
    pub packed: usize,
    /// Updates for weights of another shape.
    pub misfits: Vec<Misfit>,
    /// (full key in the model, place in the LoRA)
    fits: Vec<(String, usize)>,
}

/// An update for a weight that the model has in another shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Its name in the LoRA.
    pub name: String,
    /// (out, in) of the weight that it was made for.
    pub shape: [usize; 2],
    /// Shape of the model's weight.
    pub model: Vec<usize>,
}

impl Matches {
    /// How many updates fit.
    pub fn count(&self) -> usize {
        self.fits.len()
    }
}

impl Lora {
    /// Which of the updates have a weight in `checkpoint`.
    pub fn matches(&self, checkpoint: &Checkpoint) -> Result<Matches> {
        let mut targets = Vec::new();
        for component in CHANGED {
            for file in checkpoint.holders(component) {
                let root = component.root(file).unwrap_or_default();
                for (key, info) in file.tensors() {
                    let module = key.strip_prefix(root).filter(|key| component.owns(key));
                    if let Some(module) = module.and_then(|module| module.strip_suffix(".weight")) {
                        let outer = if component == Component::Projection { root } else { "" };
                        targets.push((format!("{outer}{module}"), component, file, key.clone(), info));
                    }
                }
            }
        }
        let names = Names::new(targets.iter().map(|(name, ..)| name.as_str()));
        let mut matches = Matches::default();
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        for (index, module) in self.modules.iter().enumerate() {
            let Some((_, component, file, key, info)) =
                names.find(&module.name).and_then(|at| targets.get(at))
            else {
                matches.unmatched.push(module.name.clone());
                continue;
            };
            if let Some(other) = taken.insert(key, &module.name) {
                let problem = format!("and {other} both change {key}");
                return Err(Error::file(self.path(), &module.name, problem, super::DAMAGED));
            }
            let shape = stands_for(file, key, info, module.shape)?;
            if shape != module.shape {
                let (name, model) = (module.name.clone(), shape);
                matches.misfits.push(Misfit { name, shape: module.shape, model });
                continue;
            }
            let packed = matches!(info.dtype, Stored::U32 | Stored::F8_E4M3 | Stored::F8_E5M2);
            if !packed && !matches!(dtype(info), Some(Dtype::Bf16 | Dtype::F16 | Dtype::F32)) {
                let problem = format!("is stored as {:?}, to which no LoRA can be added", info.dtype);
                return Err(Error::file(file.path(), key, problem, "use the bf16 model with LoRAs"));
            }
            matches.packed += usize::from(packed);
            *matches.matched.entry(component.name()).or_default() += 1;
            matches.fits.push((key.clone(), index));
        }
        Ok(matches)
    }

    /// The matches, if the LoRA belongs to the model: all shapes fit, and there is something to change.
    pub fn must_match(&self, checkpoint: &Checkpoint) -> Result<Matches> {
        let matches = self.matches(checkpoint)?;
        let remedy =
            "use a LoRA of this model's generation; `ltx lora inspect FILE --against MODEL` says what fits";
        if let Some(misfit) = matches.misfits.first() {
            let version = checkpoint.version().map_or(String::new(), |version| format!(" (LTX {version})"));
            let problem = format!(
                "changes a weight of shape {:?}, but this model's{version} is {:?}, and {} more differ: the LoRA was made for another generation or size",
                misfit.shape,
                misfit.model,
                matches.misfits.len() - 1
            );
            return Err(Error::file(self.path(), &misfit.name, problem, remedy));
        }
        if matches.count() == 0 {
            let first = self.modules.first().map_or("", |module| &module.name);
            let problem =
                format!("changes nothing: this model has none of its {} weights", self.modules.len());
            return Err(Error::file(self.path(), first, problem, remedy));
        }
        Ok(matches)
    }
}

/// The shape of the weight that a tensor stands for. Of a packed one that says nothing of its packing, `wanted` if it may be
/// that.
fn stands_for(file: &File, key: &str, info: &TensorInfo, wanted: [usize; 2]) -> Result<Vec<usize>> {
    if info.dtype != Stored::U32 {
        return Ok(info.shape.clone());
    }
    if let Some(shape) = file.layout()?.shape(file, key)? {
        return Ok(shape.to_vec());
    }
    let wide = wanted.map(|size| i32::try_from(size).unwrap_or(0));
    let fits = file.layout()?.packing(file, key, wide).is_ok();
    Ok(if fits { wanted.to_vec() } else { info.shape.clone() })
}

/// Updates of weights, by the weights' full keys.
#[derive(Clone, Debug, Default)]
pub struct Fusion {
    updates: BTreeMap<String, Vec<Update>>,
}

#[derive(Clone, Debug)]
struct Update {
    file: Arc<File>,
    module: Module,
    strength: f32,
}

impl Fusion {
    /// Adds a LoRA to what is fused. The order counts, by a rounding. A strength of 0 adds nothing.
    pub fn add(&mut self, lora: &Lora, matches: &Matches, strength: f32) {
        for (key, index) in matches.fits.iter().filter(|_| strength != 0.0) {
            if let Some(module) = lora.modules.get(*index) {
                let update = Update { file: lora.file.clone(), module: module.clone(), strength };
                self.updates.entry(key.clone()).or_default().push(update);
            }
        }
    }

    /// The files with the updates; those with several come as often.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Arc<File>> {
        self.updates.values().flatten().map(|update| &update.file)
    }

    /// What is read to change the weight `key`: files and keys in them.
    pub(crate) fn factors(&self, key: &str) -> impl Iterator<Item = (&Arc<File>, &str)> {
        self.updates.get(key).into_iter().flatten().flat_map(|Update { file, module, .. }| {
            [(file, module.down.as_str()), (file, module.up.as_str())]
        })
    }

    /// Whether the weight `key` changes.
    pub fn changes(&self, key: &str) -> bool {
        self.updates.contains_key(key)
    }

    /// The weight `key` (out, in) with all updates, in its own dtype. Other weights come back as they are.
    pub fn fuse(&self, key: &str, weight: Array) -> Result<Array> {
        let Some(updates) = self.updates.get(key) else { return Ok(weight) };
        let precision = if weight.dtype() == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let rounded = |x: &Array| x.astype(precision)?.astype(Dtype::F32);
        let mut sum: Option<Array> = None; // (out, in)
        for Update { file, module, strength } in updates {
            let factor = |key: &str| -> Result<Array> {
                let factor = rounded(&file.array(key)?)?;
                if factor.is_finite()?.all(&[0, 1], false)?.astype(Dtype::F32)?.item()? == 1.0 {
                    return Ok(factor);
                }
                Err(Error::file(file.path(), key, "holds values that are not finite", super::DAMAGED))
            };
            let (down, up) = (factor(&module.down)?, factor(&module.up)?);
            let strength = (f64::from(*strength) * module.scale) as f32;
            let transposed = Linear::new(down.transpose_last()?); // (in, rank) as a layer from rank to in
            let total = match sum {
                // The official order of roundings: the first product from a scaled factor, others scaled after.
                None => transposed.forward(&rounded(&up.multiply(strength)?)?)?,
                Some(sum) => sum.add(transposed.forward(&up)?.multiply(strength)?)?,
            };
            sum = Some(rounded(&total)?);
        }
        match sum {
            Some(sum) => Ok(sum.add(weight.astype(Dtype::F32)?)?.astype(weight.dtype())?),
            None => Ok(weight),
        }
    }
}
