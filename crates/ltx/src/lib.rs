//! LTX-2 audio-video generation.
//!
//! A prompt (and images, audio, video) becomes a video clip with synchronized sound, computed by Lightricks'
//! LTX-2 diffusion models read straight from the official files. This crate is silent: it prints nothing, reads no
//! environment variable and never exits. `ARCHITECTURE.md` at the root of the repository is the map.

pub mod audio_vae;
pub mod bench;
pub mod checkpoint;
pub mod diffusion;
pub mod dit;
pub mod error;
pub mod inspect;
pub mod media;
pub mod nn;
pub mod noise;
pub mod npz;
mod overlap;
pub mod pipeline;
pub mod progress;
pub mod shape;
pub mod synth;
pub mod text;
pub mod trace;
pub mod upsampler;
pub mod verify;
pub mod video_vae;
pub mod vocoder;

pub use error::{Error, Result};
