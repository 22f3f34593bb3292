//! Short names of Lightricks' LoRAs, and where the model hub has them.

/// A LoRA with a short name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What may be typed instead of a path.
    pub name: &'static str,
    /// Its repository on the model hub.
    pub repository: &'static str,
    /// Its file there.
    pub file: &'static str,
}

macro_rules! known {
    ($($name:literal: $repository:literal, $file:literal;)*) => {
        /// Every LoRA with a short name.
        pub const KNOWN: &[Known] = &[$(Known { name: $name, repository: $repository, file: $file }),*];
    };
}

known! {
    "distilled-2.0": "Lightricks/LTX-2", "ltx-2-19b-distilled-lora-384.safetensors";
    "distilled-2.3": "Lightricks/LTX-2.3", "ltx-2.3-22b-distilled-lora-384-1.1.safetensors";
    "distilled-2.5": "Lightricks/LTX-2.5", "loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors";
    "camera-dolly-in": "Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-In", "ltx-2-19b-lora-camera-control-dolly-in.safetensors";
    "camera-dolly-left": "Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-Left", "ltx-2-19b-lora-camera-control-dolly-left.safetensors";
    "camera-dolly-out": "Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-Out", "ltx-2-19b-lora-camera-control-dolly-out.safetensors";
    "camera-dolly-right": "Lightricks/LTX-2-19b-LoRA-Camera-Control-Dolly-Right", "ltx-2-19b-lora-camera-control-dolly-right.safetensors";
    "camera-jib-down": "Lightricks/LTX-2-19b-LoRA-Camera-Control-Jib-Down", "ltx-2-19b-lora-camera-control-jib-down.safetensors";
    "camera-jib-up": "Lightricks/LTX-2-19b-LoRA-Camera-Control-Jib-Up", "ltx-2-19b-lora-camera-control-jib-up.safetensors";
    "camera-static": "Lightricks/LTX-2-19b-LoRA-Camera-Control-Static", "ltx-2-19b-lora-camera-control-static.safetensors";
}

/// The LoRA of a short name.
pub fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}
