//! Recipes: from a request to a clip. The only place where text, transformer, autoencoders and files meet.
//!
//! [`Plan::new`] checks everything that can be checked without weights; [`Plan::run`] does the work, one network in
//! memory at a time, and gives a [`Clip`] that is decoded as it is asked for.

mod choose;
mod clip;
mod conditioning;
mod decode;
mod forecast;
mod generation;
mod images;
mod latent_file;
mod networks;
mod plan;
mod prompted;
mod recipe;
mod request;
mod run;
mod saved;
mod stage;
mod text;
mod window;
mod window_tail;

pub(crate) use conditioning::Text;
pub(crate) use prompted::Prompted;

pub use clip::{Clip, Frames, Latents, check_latents_path};
pub use decode::{Decoding, Sound};
pub use forecast::{Choices, Cost, Forecast, Limits, Phase, Speed, choose_packing, fit_writer};
pub use generation::{Generation, Kind};
pub use images::{ImageCondition, ImageSource};
pub use latent_file::LatentFile;
pub use plan::Plan;
pub use request::{GuidanceOverride, Recipe, Request, UnreadPolicy};
pub use saved::SavedRun;
pub use text::{TextPlan, TextRequest};
pub use window::{Shot, frames_of};
