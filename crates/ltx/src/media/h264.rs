//! Frames → H.264 access units, with OpenH264 built from its bundled source.
//!
//! One thread and one slice a frame: the same frames give the same bytes whatever the machine is busy with. Every block
//! has the same quantizer, so quality is even and the size follows the content. OpenH264 writes no B frames, no CABAC
//! here and at most 3840x2160 (2160x3840); the ffmpeg encoder is there for more.

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate as Hertz, FrameType, IntraFramePeriod, Profile,
    QpRange, RateControlMode, SpsPpsStrategy, UsageType, VuiConfig,
};
use openh264::formats::YUVSlices;
use openh264::nal_units;

use super::frames::{Frame, FrameRate, Planes};

/// The quantizer of every block. 20 keeps noise and grain (PSNR about 42 dB); each 6 more halves the precision.
const QUANTIZER: u8 = 20;
/// Seconds between key frames.
const KEY_INTERVAL: f64 = 2.0;

/// One coded frame as an mp4 holds it: NAL units, each behind its length in 4 bytes.
pub struct Coded {
    pub bytes: Vec<u8>,
    pub key: bool,
}

/// An encoder for frames of one size.
pub struct H264 {
    encoder: Encoder,
    planes: Planes,
    /// Sequence and picture parameter sets, known after the first frame.
    pub parameters: Option<(Vec<u8>, Vec<u8>)>,
}

impl H264 {
    /// Why OpenH264 cannot encode this size, if it cannot.
    pub fn refuses(width: u32, height: u32) -> Option<&'static str> {
        let (long, short) = (width.max(height), width.min(height));
        if long > 3840 || short > 2160 {
            return Some(
                "the built-in H.264 encoder goes up to 3840x2160 or 2160x3840; take the ffmpeg encoder",
            );
        }
        (short < 16).then_some("the built-in H.264 encoder needs at least 16 pixels each way")
    }

    /// An encoder for even `width` and `height` that [it does not refuse](Self::refuses).
    pub fn new(width: u32, height: u32, rate: FrameRate) -> Result<Self, String> {
        let encoder = open(width, height, rate, QUANTIZER)?;
        Ok(Self { encoder, planes: Planes::new(width as usize, height as usize), parameters: None })
    }

    /// Encodes the next frame, which must have the encoder's size.
    pub fn encode(&mut self, frame: &Frame) -> Result<Coded, String> {
        self.planes.convert(&frame.rgb);
        let Planes { width, height, y, u, v } = &self.planes;
        let source = YUVSlices::new((y, u, v), (*width, *height), (*width, width / 2, width / 2));
        let stream = self.encoder.encode(&source).map_err(|e| e.to_string())?;
        let key = matches!(stream.frame_type(), FrameType::IDR);
        let (mut bytes, mut sps, mut pps) = (Vec::new(), None, None);
        for unit in nal_units(&stream.to_vec()) {
            // Each comes with its start code: 00 00 01, with or without another zero ahead.
            let start = unit.iter().position(|&b| b != 0).map_or(unit.len(), |one| one + 1);
            let end = unit.iter().rposition(|&b| b != 0).map_or(start, |last| last + 1);
            let unit = &unit[start..end.max(start)];
            match unit.first().map(|header| header & 0x1f) {
                Some(7) => sps = Some(unit.to_vec()),
                Some(8) => pps = Some(unit.to_vec()),
                Some(_) => {
                    bytes.extend((unit.len() as u32).to_be_bytes());
                    bytes.extend(unit);
                }
                None => {}
            }
        }
        if let Some(parameters) = sps.zip(pps) {
            if self.parameters.as_ref().is_some_and(|known| *known != parameters) {
                return Err("the encoder changed its parameters in the middle of the clip".into());
            }
            self.parameters = Some(parameters);
        }
        if bytes.is_empty() {
            return Err("the encoder left a frame out".into());
        }
        Ok(Coded { bytes, key })
    }
}

/// OpenH264's encoder with one `quantizer` (0 to 51) for every block, for even sizes.
pub fn open(width: u32, height: u32, rate: FrameRate, quantizer: u8) -> Result<Encoder, String> {
    // Only the level is derived from this; the quantizer decides what is spent.
    let bits = f64::from(width) * f64::from(height) * rate.fps() / 8.0;
    let config = EncoderConfig::new()
        .usage_type(UsageType::CameraVideoRealTime)
        .profile(Profile::Main)
        .complexity(Complexity::High)
        // With one quantizer allowed, this mode uses it everywhere; the others would print a warning.
        .rate_control_mode(RateControlMode::Bufferbased)
        .bitrate(BitRate::from_bps(bits.clamp(100_000.0, 100_000_000.0) as u32))
        .qp(QpRange::new(quantizer, quantizer))
        .max_frame_rate(Hertz::from_hz(rate.fps() as f32))
        .intra_frame_period(IntraFramePeriod::from_num_frames((rate.fps() * KEY_INTERVAL).round() as u32))
        .sps_pps_strategy(SpsPpsStrategy::ConstantId)
        .scene_change_detect(false)
        .skip_frames(false)
        .adaptive_quantization(false)
        .background_detection(false)
        .num_threads(1)
        .vui(VuiConfig::bt709());
    Encoder::with_api_config(OpenH264API::from_source(), config).map_err(|e| e.to_string())
}
