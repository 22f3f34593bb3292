//! A model file with LoRAs fused into it: the same keys, shapes, dtypes and header, other weights.

use std::io::{self, Write};
use std::path::Path;

use mlx::{Array, Dtype};

use super::{Fusion, Lora, Matches};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::media::Output;
use crate::progress::{Event, Progress};

/// Writes `model`, one file, to `output` with each of `loras` at its strength, whole or not at all. One weight at a time
/// is in memory. Gives how each LoRA met the model.
pub fn merge(
    model: &Path,
    loras: &[(Lora, f32)],
    output: &Path,
    progress: &mut dyn Progress,
) -> Result<Vec<Matches>> {
    let checkpoint = Checkpoint::open(&[model])?;
    let [file] = checkpoint.files() else {
        return Err(Error::file(model, "", "is a folder of several models", "give the file to merge into"));
    };
    if file.is_gguf() {
        let remedy = "merge into the bf16 safetensors model, or give the LoRA with --lora";
        return Err(Error::file(file.path(), "", "is GGUF, which is not written", remedy));
    }
    if let Some((key, info)) =
        file.tensors().find(|(_, info)| info.dtype.bitsize() < 16 && info.shape.len() == 2)
    {
        let problem = format!("is {:?}: merging would round what was rounded already", info.dtype);
        let remedy =
            "merge into the bf16 model, then pack that with `ltx quantize`; or give the LoRA with --lora";
        return Err(Error::file(file.path(), key, problem, remedy));
    }
    let mut fusion = Fusion::default();
    let mut all = Vec::new();
    for (lora, strength) in loras {
        let matches = lora.must_match(&checkpoint)?;
        fusion.add(lora, &matches, *strength);
        all.push(matches);
    }
    let is_output = |path: &Path| {
        output.canonicalize().is_ok_and(|output| path.canonicalize().is_ok_and(|path| path == output))
    };
    for (path, what) in [(file.path(), "is the model itself")]
        .into_iter()
        .chain(loras.iter().map(|(lora, _)| (lora.path(), "is one of the LoRAs")))
    {
        if is_output(path) {
            return Err(Error::file(output, "", what, "give another --output"));
        }
    }
    let mut place = Output::create(output)?;
    let failed = |source: io::Error| crate::media::Error::Write { path: output.into(), source };
    let mut out = std::io::BufWriter::with_capacity(1 << 20, place.file());

    let mut tensors: Vec<_> = file.tensors().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets.0);
    progress.phase("merge", 100)?;
    let mut percent = 0;
    out.write_all(file.head()).map_err(failed)?;
    let count = tensors.len();
    for (index, (key, info)) in tensors.into_iter().enumerate() {
        if fusion.changes(&key) {
            let fused = fusion.fuse(&key, file.array(&key)?)?;
            if !fused.is_finite()?.all(&[0, 1], false)?.astype(Dtype::F32)?.item()?.eq(&1.0) {
                let remedy = "give lower strengths; `ltx lora inspect` shows the LoRAs' own scales";
                return Err(Error::file(file.path(), &key, "would hold values that are not finite", remedy));
            }
            write_values(&mut out, &fused)?.map_err(failed)?;
        } else {
            out.write_all(file.bytes(info)).map_err(failed)?;
        }
        let done = (index + 1) * 100 / count;
        if done > percent {
            percent = done;
            progress.report(Event::Step { done, of: 100 })?;
        }
    }
    out.flush().map_err(failed)?;
    drop(out);
    place.finish()?;
    Ok(all)
}

/// Writes a fused weight as its file stores it: little-endian.
fn write_values(out: &mut impl Write, weight: &Array) -> Result<io::Result<()>> {
    Ok(match weight.dtype() {
        Dtype::Bf16 => out.write_all(bytemuck::cast_slice(&weight.to_vec::<half::bf16>()?)),
        Dtype::F16 => out.write_all(bytemuck::cast_slice(&weight.to_vec::<half::f16>()?)),
        _ => out.write_all(bytemuck::cast_slice(&weight.to_f32()?)),
    })
}
