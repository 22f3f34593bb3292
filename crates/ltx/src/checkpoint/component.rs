//! Which keys belong to which network, in single-file and in split checkpoints.

use std::fmt;

use super::File;

/// A part of the model with weights of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Component {
    /// The text projection: stacked hidden states → features.
    Projection,
    /// The two text connectors.
    Connector,
    /// The audio-video diffusion transformer.
    Dit,
    /// Pixels → video latents.
    VideoEncoder,
    /// Video latents → pixels.
    VideoDecoder,
    /// Mel spectrogram → audio latents.
    AudioEncoder,
    /// Audio latents → mel spectrogram.
    AudioDecoder,
    /// Mel spectrogram → samples.
    Vocoder,
    /// Video latents → larger video latents.
    Upsampler,
}

const CONNECTORS: [&str; 2] = ["video_embeddings_connector.", "audio_embeddings_connector."];
const STATISTICS: &str = "per_channel_statistics.";

impl Component {
    /// All components, in the order data flows.
    pub const ALL: [Self; 9] = [
        Self::Projection,
        Self::Connector,
        Self::Dit,
        Self::VideoEncoder,
        Self::VideoDecoder,
        Self::AudioEncoder,
        Self::AudioDecoder,
        Self::Vocoder,
        Self::Upsampler,
    ];

    /// The name used in goldens, timings and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Projection => "projection",
            Self::Connector => "connector",
            Self::Dit => "dit",
            Self::VideoEncoder => "video_encoder",
            Self::VideoDecoder => "video_decoder",
            Self::AudioEncoder => "audio_encoder",
            Self::AudioDecoder => "audio_decoder",
            Self::Vocoder => "vocoder",
            Self::Upsampler => "upsampler",
        }
    }

    /// Key prefixes under which the component may stand. Split files leave out the outer one; there the header's
    /// configuration says whose the bare keys are.
    fn roots(self) -> &'static [&'static str] {
        match self {
            Self::Projection => &["text_embedding_projection."],
            Self::Connector | Self::Dit => &["model.diffusion_model."],
            Self::VideoEncoder | Self::VideoDecoder => &["vae.", ""],
            Self::AudioEncoder | Self::AudioDecoder => &["audio_vae.", ""],
            Self::Vocoder => &["vocoder."],
            Self::Upsampler => &[""],
        }
    }

    /// The prefix in official single files.
    pub(crate) fn official_root(self) -> &'static str {
        self.roots().first().copied().unwrap_or_default()
    }

    /// Section of the header's configuration that describes the component.
    pub(crate) fn section(self) -> &'static str {
        match self {
            Self::Projection | Self::Connector | Self::Dit => "transformer",
            Self::VideoEncoder | Self::VideoDecoder => "vae",
            Self::AudioEncoder | Self::AudioDecoder => "audio_vae",
            Self::Vocoder => "vocoder",
            Self::Upsampler => "spatial_upsample",
        }
    }

    /// Whether a key (without the root) belongs to the component.
    pub(crate) fn owns(self, key: &str) -> bool {
        let connector = CONNECTORS.iter().any(|prefix| key.starts_with(prefix));
        match self {
            Self::Connector => connector,
            Self::Dit => !connector,
            Self::VideoEncoder | Self::AudioEncoder => {
                key.starts_with("encoder.") || key.starts_with(STATISTICS)
            }
            Self::VideoDecoder | Self::AudioDecoder => {
                key.starts_with("decoder.") || key.starts_with(STATISTICS)
            }
            Self::Projection | Self::Vocoder | Self::Upsampler => true,
        }
    }

    /// The prefix under which `file` holds the component, or none when it does not.
    pub(crate) fn root(self, file: &File) -> Option<&'static str> {
        let described = || file.config().is_ok_and(|config| config.get(self.section()).is_some());
        self.roots().iter().copied().find(|root| {
            let present = file.tensors().any(|(key, _)| {
                key.strip_prefix(root).is_some_and(|key| self.owns(key) && !key.starts_with(STATISTICS))
            });
            present && (!root.is_empty() || described())
        })
    }

    /// Whether every tensor must be used. Real VAE files carry statistics that nobody reads; in the text path and the
    /// transformer an unread tensor means that the file is of another generation than it seems.
    pub fn unread(self) -> super::Unread {
        match self {
            Self::Projection | Self::Connector | Self::Dit => super::Unread::Refuse,
            _ => super::Unread::Report,
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Projection => "text projection",
            Self::Connector => "text connectors",
            Self::Dit => "transformer",
            Self::VideoEncoder => "video encoder",
            Self::VideoDecoder => "video decoder",
            Self::AudioEncoder => "audio encoder",
            Self::AudioDecoder => "audio decoder",
            Self::Vocoder => "vocoder",
            Self::Upsampler => "latent upsampler",
        })
    }
}
