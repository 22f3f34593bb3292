//! Reads back the settings that a written file carries. What is in the file is believed in nothing: lengths are checked
//! against what is there and against [`LIMIT`].

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::image::KEYWORD;

/// Longest text that is taken for settings.
const LIMIT: u64 = 16 << 20;

/// The settings in an mp4, PNG or WAV written by this module, or in the first frame of a folder of them. `None` for any
/// other file and for one that cannot be read.
pub fn read_settings(path: &Path) -> Option<String> {
    if path.is_dir() {
        return read_settings(&path.join("frame_00001.png"));
    }
    find(BufReader::new(File::open(path).ok()?))
}

/// What kind of file it is, its first bytes say.
pub(super) fn find(mut file: impl BufRead + Seek) -> Option<String> {
    let mut head = [0; 12];
    file.read_exact(&mut head).ok()?;
    file.rewind().ok()?;
    match &head {
        [0x89, b'P', b'N', b'G', ..] => png_text(file),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E'] => wav_comment(file),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => mp4_comment(file),
        _ => None,
    }
}

fn png_text(file: impl BufRead + Seek) -> Option<String> {
    let limits = png::Limits { bytes: LIMIT as usize };
    let reader = png::Decoder::new_with_limits(file, limits).read_info().ok()?;
    let text = reader.info().utf8_text.iter().find(|text| text.keyword == KEYWORD)?;
    text.get_text().ok()
}

fn wav_comment(mut file: impl Read + Seek) -> Option<String> {
    let end = file.seek(SeekFrom::End(0)).ok()?;
    let (from, to) = find_chunk(&mut file, (12, end), b"LIST")?;
    let text = find_chunk(&mut file, (from + 4, to), b"ICMT")?;
    let text = read(&mut file, text)?;
    Some(text.trim_end_matches('\0').to_owned())
}

/// Content of the first RIFF chunk of that name between two places.
fn find_chunk(
    file: &mut (impl Read + Seek),
    (mut at, end): (u64, u64),
    name: &[u8; 4],
) -> Option<(u64, u64)> {
    while at.checked_add(8)? <= end {
        let [a, b, c, d, length @ ..] = header(file, at)?;
        let content = (at + 8, (at + 8).checked_add(u32::from_le_bytes(length).into())?);
        if content.1 > end {
            return None;
        }
        if [a, b, c, d] == *name {
            return Some(content);
        }
        at = content.1.next_multiple_of(2);
    }
    None
}

fn mp4_comment(mut file: impl Read + Seek) -> Option<String> {
    let mut place = (0, file.seek(SeekFrom::End(0)).ok()?);
    for (name, skipped) in
        [(b"moov", 0), (b"udta", 0), (b"meta", 4), (b"ilst", 0), (b"\xa9cmt", 0), (b"data", 8)]
    {
        let (from, to) = find_box(&mut file, place, name)?;
        place = (from.checked_add(skipped).filter(|from| *from <= to)?, to);
    }
    read(&mut file, place)
}

/// Content of the first box of that name between two places.
fn find_box(file: &mut (impl Read + Seek), (mut at, end): (u64, u64), name: &[u8; 4]) -> Option<(u64, u64)> {
    while at.checked_add(8)? <= end {
        let [a, b, c, d, found @ ..] = header(file, at)?;
        let (head, length) = match u32::from_be_bytes([a, b, c, d]) {
            0 => (8, end - at),
            1 => (16, u64::from_be_bytes(header(file, at + 8)?)),
            length => (8, length.into()),
        };
        let next = at.checked_add(length).filter(|next| length >= head && *next <= end)?;
        if found == *name {
            return Some((at + head, next));
        }
        at = next;
    }
    None
}

fn header(file: &mut (impl Read + Seek), at: u64) -> Option<[u8; 8]> {
    let mut bytes = [0; 8];
    file.seek(SeekFrom::Start(at)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn read(file: &mut (impl Read + Seek), (from, to): (u64, u64)) -> Option<String> {
    let length = to.checked_sub(from).filter(|length| *length <= LIMIT)?;
    let mut bytes = vec![0; length as usize];
    file.seek(SeekFrom::Start(from)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}
