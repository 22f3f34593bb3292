//! AMX: tiles of up to 16 rows of 64 bytes, and the instruction that multiplies two of them as pairs of bf16 into f32.
//!
//! Everything here is one product over tiles; vectors on such a processor are AVX-512's. Rust's intrinsics for tiles are
//! not stable, hence `asm!`. Like all of AMX, the product takes subnormal numbers for zero.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::Active;

/// Columns of a panel: two tiles.
pub(crate) const WIDTH: usize = 32;

/// Words that a tile has of each row, and rows that it has.
pub(crate) const TILE: usize = 16;

/// Exists only where the processor has the instructions and the system lets this process use them.
#[derive(Clone, Copy)]
pub(crate) struct Amx(());

impl Active {
    /// What multiplies tiles, where that is in use.
    pub(crate) fn amx(self) -> Option<Amx> {
        (self.0 == super::Isa::AmxBf16).then_some(Amx(()))
    }
}

/// Whether the processor has tiles and products of bf16, and the system saves them and lets this process use them. The
/// processor has AVX.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        #[allow(unused_unsafe)] // safe in newer Rust
        // SAFETY: every 64-bit processor has the instruction.
        let cpuid = |leaf| unsafe { __cpuid_count(leaf, 0) };
        let has = |bit: u32| cpuid(7).edx >> bit & 1 == 1;
        let (bf16, tiles) = (22, 24);
        let real = cpuid(0).eax >= 7 && has(bf16) && has(tiles) && saved() && permitted();
        #[cfg(all(target_os = "linux", feature = "emulate-amx"))]
        return real || super::amx_emulation::install();
        #[cfg(not(all(target_os = "linux", feature = "emulate-amx")))]
        real
    })
}

/// Whether the system saves both parts of the tiles' state.
fn saved() -> bool {
    let low: u32;
    // SAFETY: where AVX is in use, so is this instruction; it only reads.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack)) };
    let (configuration, data) = (1 << 17, 1 << 18);
    low & (configuration | data) == configuration | data
}

/// Linux wants to be asked, once for all threads of a process, before the first use.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let result: usize;
    // SAFETY: this call touches no memory of the process; `syscall` overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// c (panels, rows, WIDTH) = or += a (rows, words) · b (panels, words, WIDTH), where words are pairs of bf16.
///
/// Four products of tiles (2 × 2 in c) need four tiles loaded and 64 cycles, so that loads from the first-level cache take
/// half of the time there is and loads from the second-level cache nearly all of it. Therefore 32 rows of `a`, [`STEPS`]
/// tiles of them at a time, stay in the first-level cache while all panels pass, and the product is as good as its panels
/// stay in the second level: 16 KiB of `a`, 16 KiB of a panel and 4 KiB of `c` are 36 of 48 KiB. Rows of `a` that are far
/// apart fall on the same few sets of the first-level cache; so the tiles that the first panel loads are stored one
/// behind the other for the next panels, which costs that panel nothing but stores.
pub(crate) struct TileProduct<'a> {
    /// Rows `stride` bytes apart.
    pub(crate) a: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) b: &'a [f32],
    /// Values of `b` from one panel to the next.
    pub(crate) panel: usize,
    pub(crate) c: &'a mut [f32],
    /// Words in tiles: `words` = 16 · `steps`.
    pub(crate) steps: usize,
    /// Add to what `c` holds.
    pub(crate) accumulate: bool,
    /// Where the next product's `a` begins: fetched while this one is computed.
    pub(crate) next: *const u8,
}

/// Tiles along a row that are multiplied before the next panel.
const STEPS: usize = 8;

/// Room for 2 × [`STEPS`] tiles.
#[repr(C, align(64))]
struct Kept(MaybeUninit<[u8; 2 * STEPS * 1024]>);

impl Amx {
    /// Tiles are configured here and released at the end: some 200 cycles, of many thousand. So it does not matter which
    /// thread calls, and nobody else's context switches carry tiles.
    pub(crate) fn multiply(self, product: TileProduct<'_>) {
        let TileProduct { a, stride, rows, b, panel: panel_len, c, steps, accumulate, next } = product;
        if steps == 0 || rows == 0 {
            if !accumulate {
                c.fill(0.0);
            }
            return;
        }
        let panels = c.len() / (rows * WIDTH);
        assert!(a.len() >= (rows - 1) * stride + steps * 64, "rows are too short");
        assert!(
            c.len() == panels * rows * WIDTH
                && b.len() >= panels * panel_len
                && panel_len >= steps * TILE * WIDTH
        );
        let mut kept = Kept(MaybeUninit::uninit());
        let mut configured = 0;
        // The next rows are fetched evenly, up to two for each call, and of two neighbouring lines one: the processor
        // itself fetches the other.
        let calls = rows.div_ceil(2 * TILE) * steps.div_ceil(STEPS) * panels;
        let mut call = 0usize;
        for row in (0..rows).step_by(2 * TILE) {
            let height = (rows - row).min(2 * TILE);
            if height != configured {
                configure(height);
                configured = height;
            }
            for step in (0..steps).step_by(STEPS) {
                let steps = STEPS.min(steps - step);
                for panel in 0..panels {
                    let ahead = |half| next.wrapping_add((2 * call + half) * rows / (2 * calls) * stride);
                    let kept: *mut u8 = kept.0.as_mut_ptr().cast();
                    // SAFETY: row < rows, step < steps and panel < panels, so that by the lengths found above every
                    // row of the tiles lies inside `a`, `b` and `c`; `kept` has room for 2 · STEPS tiles, and was
                    // filled by the first panel when others read it. The instructions exist, since `self` does.
                    unsafe {
                        let (a, a_stride, a_step, keep) = if panel == 0 {
                            let keep = if panels > 1 { kept } else { std::ptr::null_mut() };
                            (a.as_ptr().add(row * stride + step * 64), stride, 64, keep)
                        } else {
                            (kept.cast_const(), 64, 2048, std::ptr::null_mut())
                        };
                        square(Square {
                            a: [a, a.wrapping_add(if panel == 0 { TILE * stride } else { 1024 })],
                            a_stride,
                            a_step,
                            keep,
                            b: b.as_ptr().add(panel * panel_len + step * TILE * WIDTH),
                            c: c.as_mut_ptr().add((panel * rows + row) * WIDTH),
                            steps,
                            accumulate: accumulate || step > 0,
                            tall: height > TILE,
                            ahead: [ahead(0), ahead(1)],
                        });
                    }
                    call += 1;
                }
            }
        }
        // SAFETY: the instruction exists; tiles hold nothing any more.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

impl Amx {
    /// Multiplications and additions in a round of [`Self::spin`]: four products of 16 × 32 by 32 × 16.
    pub(crate) const ROUND: usize = 4 * 2 * TILE * TILE * 2 * TILE;

    /// Products of tiles that hold zeros, for measuring what is possible; at least one round.
    pub(crate) fn spin(self, rounds: usize) {
        configure(2 * TILE);
        // SAFETY: the instructions exist, and no memory is touched. Tiles hold nothing before and after.
        unsafe {
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                rounds = inout(reg) rounds.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nomem, nostack),
            );
        }
    }
}

/// Tiles 0 to 3: c, two by two; 4 and 5: rows of a, one below the other; 6 and 7: words of b, side by side.
fn configure(height: usize) {
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }
    let mut configuration =
        Configuration { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    let (upper, lower) = (height.min(TILE), height.saturating_sub(TILE));
    for (tile, rows) in [upper, upper, lower, lower, upper, lower, TILE, TILE].into_iter().enumerate() {
        // A tile has rows and bytes, or neither.
        configuration.bytes[tile] = if rows > 0 { 64 } else { 0 };
        configuration.rows[tile] = rows as u8;
    }
    // SAFETY: a caller has an `Amx`, so the instruction exists; it reads 64 bytes and empties all tiles, which hold nothing
    // outside of `square`.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(readonly, nostack)) };
}

/// c (≤ 32 rows, WIDTH) = or += a · b over `steps` tiles.
struct Square {
    /// The upper rows and the lower, `a_stride` bytes apart; `a_step` bytes on is the next tile.
    a: [*const u8; 2],
    a_stride: usize,
    a_step: usize,
    /// Where the tiles of `a` go, one behind the other, unless null; then `a_step` is 64.
    keep: *mut u8,
    b: *const f32,
    c: *mut f32,
    steps: usize,
    accumulate: bool,
    /// There are lower rows.
    tall: bool,
    ahead: [*const u8; 2],
}

/// # Safety
/// Tiles are configured for the height of `c`, and every place that the fields speak of is there, `ahead` excepted. At
/// least one step.
#[inline(always)]
unsafe fn square(square: Square) {
    // SAFETY: the caller's promise. All tiles are dead before and after.
    unsafe {
        asm!(
            "test {flags:e}, 1",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "test {flags:e}, 2",
            "jz 3f",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {line}*1]",
            "tileloadd tmm1, [{c} + {line}*1 + 64]",
            "test {flags:e}, 2",
            "jz 3f",
            "tileloadd tmm2, [{c} + {line}*1 + 2048]",
            "tileloadd tmm3, [{c} + {line}*1 + 2112]",
            "3:",
            "tileloadd tmm6, [{b} + {line}*1]",
            "tileloadd tmm4, [{upper} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {line}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "test {flags:e}, 2",
            "jz 4f",
            "tileloadd tmm5, [{lower} + {stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "4:",
            "test {keep}, {keep}",
            "jz 6f",
            "tilestored [{keep} + {step}*1], tmm4",
            "test {flags:e}, 2",
            "jz 5f",
            "tilestored [{keep} + {step}*1 + 1024], tmm5",
            "5:",
            "add {keep}, 2048",
            "6:",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{beyond}]",
            "add {ahead}, 128",
            "add {beyond}, 128",
            "add {upper}, {step}",
            "add {lower}, {step}",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {line}*1], tmm0",
            "tilestored [{c} + {line}*1 + 64], tmm1",
            "test {flags:e}, 2",
            "jz 7f",
            "tilestored [{c} + {line}*1 + 2048], tmm2",
            "tilestored [{c} + {line}*1 + 2112], tmm3",
            "7:",
            upper = inout(reg) square.a[0] => _,
            lower = inout(reg) square.a[1] => _,
            stride = in(reg) square.a_stride,
            step = in(reg) square.a_step,
            keep = inout(reg) square.keep => _,
            b = inout(reg) square.b => _,
            c = in(reg) square.c,
            line = in(reg) WIDTH * 4,
            steps = inout(reg) square.steps => _,
            flags = in(reg) u32::from(square.accumulate) | u32::from(square.tall) << 1,
            ahead = inout(reg) square.ahead[0] => _,
            beyond = inout(reg) square.ahead[1] => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
