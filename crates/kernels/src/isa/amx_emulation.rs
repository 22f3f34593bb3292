//! AMX for tests on processors that lack it. There the instructions on tiles raise SIGILL; the handler here does what they
//! would have done and goes on behind them. So the very code that other processors run is proven, its encoding, its
//! configuration of tiles and its addresses included; only its speed is not that of AMX.
//!
//! Semantics are those of Intel's "Software Developer's Manual", volume 2. What would fault on a processor (a tile that
//! is not configured, operands that do not fit) ends the program with a message: code that does this is wrong.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::sync::OnceLock;

use libc::{REG_RIP, greg_t, siginfo_t, ucontext_t};

const TILES: usize = 8;
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    /// Bytes of a row.
    bytes: usize,
    data: [[u8; ROW_BYTES]; ROWS],
}

/// A thread's tiles; none before `ldtilecfg` and after `tilerelease`.
struct State {
    configured: bool,
    tiles: [Tile; TILES],
}

const EMPTY: Tile = Tile { rows: 0, bytes: 0, data: [[0; ROW_BYTES]; ROWS] };

thread_local! {
    // Neither made lazily nor dropped: a signal handler may use it at any time.
    static STATE: UnsafeCell<State> =
        const { UnsafeCell::new(State { configured: false, tiles: [EMPTY; TILES] }) };
}

/// Makes instructions on tiles work from now on, in every thread. False where the system does not let it.
pub(super) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: all zeros are a valid `sigaction`; the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction =
                on_illegal as extern "C" fn(c_int, *mut siginfo_t, *mut libc::c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn on_illegal(_: c_int, _: *mut siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context, in which the instruction pointer is at a readable instruction (at least
    // as much of it as is decoded); the state is this thread's, and the handler does not interrupt itself, since it
    // executes no instruction on tiles.
    unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let code = Code { at: registers[REG_RIP as usize] as *const u8, registers };
        match STATE.with(|state| code.execute(&mut *state.get())) {
            Ok(length) => registers[REG_RIP as usize] += length as greg_t,
            Err(problem) => {
                for part in ["amx emulation: ", problem, "\n"] {
                    libc::write(2, part.as_ptr().cast(), part.len());
                }
                libc::abort();
            }
        }
    }
}

/// An instruction and the registers that it finds.
struct Code<'a> {
    at: *const u8,
    registers: &'a [greg_t; 23],
}

/// Base, distance from row to row (base alone where there is no index), and the length of the whole instruction.
struct Memory {
    base: usize,
    stride: usize,
    length: usize,
}

impl Code<'_> {
    unsafe fn byte(&self, index: usize) -> u8 {
        // SAFETY: the caller's promise that the instruction reaches so far.
        unsafe { *self.at.add(index) }
    }

    /// Does the instruction and returns its length, or what is wrong with it.
    ///
    /// # Safety
    /// `at` is readable as far as the instruction goes, and so is what it loads from or stores to.
    unsafe fn execute(&self, state: &mut State) -> Result<usize, &'static str> {
        // SAFETY: the caller's promise, for this whole function.
        unsafe {
            // Three bytes of VEX: C4, inverted R X B and the map 0F38, then W, inverted vvvv, L and the prefix.
            let [escape, map, form, opcode, modrm] = std::array::from_fn(|index| self.byte(index));
            if escape != 0xC4 || map & 0x1F != 2 || form & 0x84 != 0 {
                return Err("an illegal instruction that is none of AMX");
            }
            let (prefix, register_only) = (form & 3, modrm >> 6 == 3);
            let (reg, rm, vvvv) = ((modrm >> 3 & 7) as usize, (modrm & 7) as usize, !form >> 3 & 15);
            let (none, f3, f2) = (0, 2, 3);
            match (opcode, prefix, register_only) {
                (0x49, p, false) if p == none && reg == 0 => {
                    let Memory { base, length, .. } = self.memory();
                    state.configure(&*(base as *const [u8; 64]))?;
                    Ok(length)
                }
                (0x49, p, true) if p == none && modrm == 0xC0 => {
                    *state = State { configured: false, tiles: [EMPTY; TILES] };
                    Ok(5)
                }
                (0x49, p, true) if p == f2 && rm == 0 => {
                    state.tile(reg)?.data = EMPTY.data;
                    Ok(5)
                }
                (0x4B, p, false) if p == f2 || p == f3 => {
                    if rm != 4 {
                        return Err("a tile's address without an index");
                    }
                    let Memory { base, stride, length } = self.memory();
                    let tile = state.tile(reg)?;
                    for row in 0..tile.rows {
                        let memory = base.wrapping_add(row.wrapping_mul(stride)) as *mut u8;
                        let data = tile.data[row].as_mut_ptr();
                        if p == f2 {
                            std::ptr::copy_nonoverlapping(memory, data, tile.bytes);
                        } else {
                            std::ptr::copy_nonoverlapping(data, memory, tile.bytes);
                        }
                    }
                    Ok(length)
                }
                (0x5C, p, true) if p == f3 => {
                    state.multiply(reg, rm, vvvv as usize)?;
                    Ok(5)
                }
                _ => Err("an instruction of AMX that is not emulated"),
            }
        }
    }

    /// The operand in memory that ModRM, SIB and a displacement describe.
    unsafe fn memory(&self) -> Memory {
        // SAFETY: the caller's promise that the instruction can be read.
        unsafe {
            let (map, modrm) = (self.byte(1), self.byte(4));
            let (mode, rm) = (modrm >> 6, modrm & 7);
            // VEX has the registers' fourth bits, inverted.
            let fourth = |bit: u8| if map >> bit & 1 == 0 { 8 } else { 0 };
            let (mut length, mut base, mut stride) = (5, Some(rm + fourth(5)), 0);
            if rm == 4 {
                let sib = self.byte(length);
                length += 1;
                base = (sib & 7 != 5 || mode != 0).then_some((sib & 7) + fourth(5));
                let index = (sib >> 3 & 7) + fourth(6);
                // Register 4 as an index stands for none.
                stride = if index == 4 { 0 } else { self.register(index) << (sib >> 6) };
            } else if rm == 5 && mode == 0 {
                base = None;
            }
            let displacement = match (mode, base) {
                (1, _) => self.byte(length) as i8 as isize,
                (2, _) | (_, None) => {
                    i32::from_le_bytes(std::array::from_fn(|index| self.byte(length + index))) as isize
                }
                _ => 0,
            };
            length += match (mode, base) {
                (1, _) => 1,
                (2, _) | (_, None) => 4,
                _ => 0,
            };
            let from = match base {
                Some(register) => self.register(register),
                // Without a base: relative to the next instruction, or (with SIB) to nothing.
                None if rm == 5 => self.at as usize + length,
                None => 0,
            };
            Memory { base: from.wrapping_add_signed(displacement), stride, length }
        }
    }

    /// By the number that encodings use.
    fn register(&self, number: u8) -> usize {
        use libc::{REG_R8, REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
        let first = [REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI];
        let number = usize::from(number);
        let place = if number < 8 { first[number] as usize } else { REG_R8 as usize + number - 8 };
        self.registers[place] as usize
    }
}

impl State {
    fn configure(&mut self, from: &[u8; 64]) -> Result<(), &'static str> {
        let (bytes, rows) = (&from[16..48], &from[48..64]);
        if from[0] != 1 || from[1] != 0 || from[2..16].iter().any(|&byte| byte != 0) {
            return Err("ldtilecfg: not palette 1, a start row, or something in the reserved bytes");
        }
        *self = State { configured: true, tiles: [EMPTY; TILES] };
        for (index, (bytes, &rows)) in bytes.chunks_exact(2).zip(rows).enumerate() {
            let (bytes, rows) = (usize::from(bytes[0]) | usize::from(bytes[1]) << 8, usize::from(rows));
            if bytes > ROW_BYTES || rows > ROWS || (bytes == 0) != (rows == 0) {
                return Err("ldtilecfg: a tile of impossible size");
            }
            match self.tiles.get_mut(index) {
                Some(tile) => (tile.bytes, tile.rows) = (bytes, rows),
                None if rows == 0 => {}
                None => return Err("ldtilecfg: a size for a tile that is not there"),
            }
        }
        Ok(())
    }

    fn tile(&mut self, index: usize) -> Result<&mut Tile, &'static str> {
        match self.tiles.get_mut(index) {
            Some(tile) if self.configured && tile.rows > 0 => Ok(tile),
            _ => Err("a tile that is not configured"),
        }
    }

    /// `tdpbf16ps to, a, b`: to (rows, columns) += a (rows, words) · b (words, columns), words being pairs of bf16.
    fn multiply(&mut self, to: usize, a: usize, b: usize) -> Result<(), &'static str> {
        let (left, right) = (*self.tile(a)?, *self.tile(b)?);
        let tile = self.tile(to)?;
        if to == a || to == b || a == b {
            return Err("tdpbf16ps: one tile twice");
        }
        if left.bytes != 4 * right.rows || tile.bytes != right.bytes || tile.rows != left.rows {
            return Err("tdpbf16ps: tiles that do not fit");
        }
        for (row, left) in tile.data.iter_mut().zip(&left.data).take(tile.rows) {
            // The first and the second values of pairs are summed apart.
            let mut sums = [[0.0f32; 2]; ROW_BYTES / 4];
            for (pair, right) in left.chunks_exact(4).zip(&right.data).take(right.rows) {
                for (sums, column) in sums.iter_mut().zip(right.chunks_exact(4)).take(tile.bytes / 4) {
                    for (half, sum) in sums.iter_mut().enumerate() {
                        // Exact as an f32, so that adding it rounds once, as a fused operation does.
                        let product = value(pair, half) * value(column, half);
                        *sum = flush(*sum + product);
                    }
                }
            }
            for (place, [even, odd]) in row.chunks_exact_mut(4).zip(sums).take(tile.bytes / 4) {
                let before = flush(f32::from_le_bytes([place[0], place[1], place[2], place[3]]));
                place.copy_from_slice(&flush(before + flush(even + odd)).to_le_bytes());
            }
        }
        Ok(())
    }
}

/// One bf16 of a pair.
fn value(pair: &[u8], half: usize) -> f32 {
    flush(f32::from_le_bytes([0, 0, pair[2 * half], pair[2 * half + 1]]))
}

/// AMX takes subnormal numbers for zero and makes none.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}
