//! Which `libmlx` a build gets: pure functions from the target to a wheel, its checksum and the link flags.
//!
//! Apple publishes MLX's native library as Python-free wheels, one per platform. Nothing here touches the disk or
//! the network, so the choice for a Mac is tested on Linux too.

/// The pinned MLX release. The binding is written against its C++ headers.
pub const VERSION: &str = "0.32.4";

/// What the choice of library depends on.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `linux` or `macos`, as cargo spells it.
    pub os: &'a str,
    /// `x86_64` or `aarch64`.
    pub arch: &'a str,
    /// Whether the `cuda` feature is on.
    pub cuda: bool,
    /// Major version of macOS that the program will run on; ignored elsewhere.
    pub macos: u32,
}

/// One published wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct Wheel {
    /// Package name.
    pub package: &'static str,
    /// Platform tag, as `pip download --platform` takes it.
    pub platform: &'static str,
    /// Checksum of the file.
    pub sha256: &'static str,
}

const WHEELS: [Wheel; 7] = [
    Wheel {
        package: "mlx-cpu",
        platform: "manylinux_2_35_x86_64",
        sha256: "0e0a24fa2ce8b6b94d2e6a90604e8813aa8e29fcb918bb2aa01cfb6d133d8cee",
    },
    Wheel {
        package: "mlx-cpu",
        platform: "manylinux_2_35_aarch64",
        sha256: "1289e85e64af1fd16380bf331438bfe4afe875d27afc3e0bcf35f427c488fadd",
    },
    Wheel {
        package: "mlx-cuda-13",
        platform: "manylinux_2_35_x86_64",
        sha256: "94cb48fba73e5ee39467e51c35c51c691123359ca17bafd1a24cf92ad6732bee",
    },
    Wheel {
        package: "mlx-cuda-13",
        platform: "manylinux_2_35_aarch64",
        sha256: "cf8a67b49cebff85cd98b1d118c09f6c8ee966b899a914c50cc74d614b25616e",
    },
    Wheel {
        package: "mlx-metal",
        platform: "macosx_14_0_arm64",
        sha256: "8019b2db622599267d66cc168b2f0dbf5af929790a6c3b3913e00eabc42a7947",
    },
    Wheel {
        package: "mlx-metal",
        platform: "macosx_15_0_arm64",
        sha256: "9f0a3cc26d89724434d9684932fc6f3e4e83669d2a895d858ed2c8a55eb84e8b",
    },
    Wheel {
        package: "mlx-metal",
        platform: "macosx_26_0_arm64",
        sha256: "514df92d41a286895d2564b4b18f4da45096bd7a4a0c47e1042f345ad5a7f936",
    },
];

/// The wheel for `target`, or a sentence saying why there is none.
pub fn choose(target: Target<'_>) -> Result<&'static Wheel, String> {
    let (package, platform) = match (target.os, target.arch, target.cuda) {
        ("macos", _, true) => return Err("the `cuda` feature is for Linux; build without it on a Mac".into()),
        ("macos", "aarch64", false) => (
            "mlx-metal",
            match target.macos {
                26.. => "macosx_26_0_arm64",
                15.. => "macosx_15_0_arm64",
                14 => "macosx_14_0_arm64",
                older => return Err(format!("MLX needs macOS 14 or newer; this is macOS {older}")),
            },
        ),
        ("linux", "x86_64", cuda) => (if cuda { "mlx-cuda-13" } else { "mlx-cpu" }, "manylinux_2_35_x86_64"),
        ("linux", "aarch64", cuda) => {
            (if cuda { "mlx-cuda-13" } else { "mlx-cpu" }, "manylinux_2_35_aarch64")
        }
        (os, arch, _) => {
            return Err(format!("MLX publishes no library for {os} on {arch}; set MLX_DIR to one you built"));
        }
    };
    WHEELS
        .iter()
        .find(|wheel| wheel.package == package && wheel.platform == platform)
        .ok_or_else(|| format!("no pinned wheel {package} for {platform}"))
}

impl Wheel {
    /// Folder name in the cache: one per version, flavour and platform.
    pub fn folder(&self) -> String {
        format!("{VERSION}-{}-{}", self.package.trim_start_matches("mlx-"), self.platform)
    }

    /// Arguments after `python3 -m pip` that fetch this wheel into `folder`.
    pub fn pip_arguments(&self, folder: &str) -> Vec<String> {
        let requirement = format!("{}=={VERSION}", self.package);
        [
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--platform",
            self.platform,
            "--dest",
            folder,
        ]
        .into_iter()
        .map(String::from)
        .chain([requirement])
        .collect()
    }
}

/// Where the finished program looks for `libmlx`: beside itself first, then in the folder it was built against.
pub fn rpaths(os: &str, library_folder: &str) -> [String; 2] {
    let beside = if os == "macos" { "@loader_path" } else { "$ORIGIN" };
    [beside.to_string(), library_folder.to_string()]
}

/// `14.5` and `26.0.1` → 14 and 26.
pub fn macos_major(version: &str) -> Option<u32> {
    version.trim().split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(os: &str, arch: &str, cuda: bool, macos: u32) -> Result<String, String> {
        choose(Target { os, arch, cuda, macos }).map(Wheel::folder)
    }

    #[test]
    fn every_supported_target_has_its_wheel() {
        assert_eq!(on("linux", "x86_64", false, 0).unwrap(), "0.32.4-cpu-manylinux_2_35_x86_64");
        assert_eq!(on("linux", "aarch64", false, 0).unwrap(), "0.32.4-cpu-manylinux_2_35_aarch64");
        assert_eq!(on("linux", "x86_64", true, 0).unwrap(), "0.32.4-cuda-13-manylinux_2_35_x86_64");
        assert_eq!(on("macos", "aarch64", false, 14).unwrap(), "0.32.4-metal-macosx_14_0_arm64");
        assert_eq!(on("macos", "aarch64", false, 15).unwrap(), "0.32.4-metal-macosx_15_0_arm64");
        assert_eq!(on("macos", "aarch64", false, 26).unwrap(), "0.32.4-metal-macosx_26_0_arm64");
        assert_eq!(on("macos", "aarch64", false, 27).unwrap(), "0.32.4-metal-macosx_26_0_arm64");
    }

    #[test]
    fn unsupported_targets_say_why() {
        assert!(on("macos", "aarch64", false, 13).unwrap_err().contains("macOS 14"));
        assert!(on("macos", "aarch64", true, 15).unwrap_err().contains("cuda"));
        assert!(on("macos", "x86_64", false, 15).unwrap_err().contains("MLX_DIR"));
        assert!(on("windows", "x86_64", false, 0).unwrap_err().contains("windows"));
    }

    #[test]
    fn checksums_are_distinct_sha256() {
        for (i, wheel) in WHEELS.iter().enumerate() {
            assert!(wheel.sha256.len() == 64 && wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(WHEELS[..i].iter().all(|other| other.sha256 != wheel.sha256));
        }
    }

    #[test]
    fn pip_is_told_the_platform_and_the_pin() {
        let arguments = WHEELS[0].pip_arguments("/tmp/x");
        assert_eq!(arguments.last().unwrap(), "mlx-cpu==0.32.4");
        assert!(arguments.windows(2).any(|pair| pair == ["--platform", "manylinux_2_35_x86_64"]));
    }

    #[test]
    fn the_program_looks_beside_itself_first() {
        assert_eq!(rpaths("linux", "/c/lib"), ["$ORIGIN", "/c/lib"]);
        assert_eq!(rpaths("macos", "/c/lib"), ["@loader_path", "/c/lib"]);
    }

    #[test]
    fn macos_versions_parse() {
        assert_eq!(macos_major("26.0.1\n"), Some(26));
        assert_eq!(macos_major("14"), Some(14));
        assert_eq!(macos_major(""), None);
    }
}
