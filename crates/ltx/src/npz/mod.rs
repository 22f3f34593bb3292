//! NumPy's `.npz`: named arrays in a zip, as `numpy.savez` and `savez_compressed` write them and `numpy.load` reads them.
//!
//! What is in a file is believed in nothing: an array's header is read and judged before its values, and no more bytes
//! are unpacked than it announces. Nothing here knows what an array means.

mod header;

use std::fs;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use half::f16;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::error::{Error, Result};
use crate::media::Output;
use header::{Header, Kind};

/// Longest header, and longest text in bytes: far above any that is meant.
const LONGEST_HEADER: u64 = 64 << 10;
const LONGEST_TEXT: usize = 4 << 20;
/// Most bytes of an array's values.
const LARGEST: usize = 1 << 30;

const REMEDY: &str = "make the file again with `ltx`, or with numpy.savez and arrays of numbers";

/// An open `.npz`.
#[derive(Debug)]
pub struct Npz {
    path: PathBuf,
    archive: ZipArchive<BufReader<fs::File>>,
}

impl Npz {
    /// Opens a file and reads its table of contents.
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = |error: &dyn std::fmt::Display| {
            Error::file(
                path,
                "",
                format!("cannot be opened: {error}"),
                "check that it is a file you may read",
            )
        };
        // Asked before it is opened: a pipe would not open until somebody writes to it.
        if !fs::metadata(path).map_err(|error| unreadable(&error))?.is_file() {
            return Err(Error::file(path, "", "is not a file", "give a .npz file"));
        }
        let file = fs::File::open(path).map_err(|error| unreadable(&error))?;
        let archive = ZipArchive::new(BufReader::new(file))
            .map_err(|error| Error::file(path, "", format!("is not a whole .npz file: {error}"), REMEDY))?;
        Ok(Self { path: path.into(), archive })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has the array.
    pub fn has(&self, name: &str) -> bool {
        self.archive.index_for_name(&format!("{name}.npy")).is_some()
    }

    /// An array's shape, without its values.
    pub fn shape(&mut self, name: &str) -> Result<Vec<usize>> {
        self.entry(name, |header, _| Ok(header.shape))
    }

    /// An array of numbers of any type, as f32 in row-major order, and its shape.
    pub fn numbers(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        self.entry(name, |header, values| {
            if header.kind == Kind::Text {
                return Err("it is a text, not numbers".into());
            }
            let values = numbers(&header, &read(&header, LARGEST, values)?);
            let values = if header.fortran { row_major(&header.shape, &values) } else { values };
            Ok((header.shape, values))
        })
    }

    /// A text: an array without axes.
    pub fn text(&mut self, name: &str) -> Result<String> {
        self.entry(name, |header, values| {
            if header.kind != Kind::Text || header.count() != Some(1) {
                return Err("it is not one text".into());
            }
            let bytes = read(&header, LONGEST_TEXT, values)?;
            let codes = bytes
                .chunks_exact(4)
                .map(|code| swapped::<4>(code, header.big_endian))
                .map(u32::from_le_bytes);
            let text: Option<String> = codes.map(char::from_u32).collect();
            let text = text.ok_or("it holds what is no character")?;
            Ok(text.trim_end_matches('\0').to_owned())
        })
    }

    /// Reads an entry's header and gives it with the rest to `read`, whose error says what is wrong.
    fn entry<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Header, &mut dyn Read) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let Self { path, archive } = self;
        let error = |problem: String| Error::file(&*path, name, problem, REMEDY);
        let mut entry = match archive.by_name(&format!("{name}.npy")) {
            Ok(entry) => entry,
            Err(ZipError::FileNotFound) => return Err(error("is missing".into())),
            Err(problem) => return Err(error(format!("cannot be read: {problem}"))),
        };
        let found = read_header(&mut entry).and_then(|header| read(header, &mut entry));
        found.map_err(|problem| error(format!("cannot be read: {problem}")))
    }
}

/// Whether a file begins as zip archives do.
pub fn is_zip(path: &Path) -> bool {
    let mut start = [0; 4];
    fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && start == *b"PK\x03\x04"
}

fn damaged(error: io::Error) -> String {
    format!("it is cut off or damaged ({error})")
}

fn read_header(entry: &mut impl Read) -> std::result::Result<Header, String> {
    let mut start = [0; 8];
    entry.read_exact(&mut start).map_err(damaged)?;
    let [0x93, b'N', b'U', b'M', b'P', b'Y', version, _] = start else {
        return Err("it is not in NumPy's format".into());
    };
    let mut length = [0; 4];
    let size = match version {
        1 => 2,
        2 | 3 => 4,
        _ => return Err(format!("it is in version {version} of NumPy's format")),
    };
    entry.read_exact(&mut length[..size]).map_err(damaged)?;
    let length = u64::from(u32::from_le_bytes(length));
    if length > LONGEST_HEADER {
        return Err(format!("its header is {length} bytes long"));
    }
    let mut text = Vec::new();
    entry.take(length).read_to_end(&mut text).map_err(damaged)?;
    let text = String::from_utf8(text).map_err(|_| "its header is not text")?;
    Header::parse(&text)
}

/// All bytes of the values: as many as the header announces, and not one more.
fn read(header: &Header, largest: usize, values: &mut dyn Read) -> std::result::Result<Vec<u8>, String> {
    let size = header.count().and_then(|count| count.checked_mul(header.width));
    let size = size
        .filter(|&size| size <= largest)
        .ok_or_else(|| format!("its shape {:?} is too large", header.shape))?;
    let mut bytes = Vec::new();
    values.take(size as u64 + 1).read_to_end(&mut bytes).map_err(damaged)?;
    match bytes.len() {
        length if length == size => Ok(bytes),
        length if length < size => Err(format!("it ends after {length} of {size} bytes")),
        _ => Err(format!("it goes on after the {size} bytes of its shape {:?}", header.shape)),
    }
}

/// The bytes of one element, lowest first.
fn swapped<const N: usize>(bytes: &[u8], big_endian: bool) -> [u8; N] {
    let mut own = [0; N];
    own.copy_from_slice(bytes);
    if big_endian {
        own.reverse();
    }
    own
}

fn numbers(header: &Header, bytes: &[u8]) -> Vec<f32> {
    macro_rules! read {
        ($type:ty, $width:literal, $number:ident => $value:expr) => {
            bytes
                .chunks_exact($width)
                .map(|element| {
                    let $number = <$type>::from_le_bytes(swapped::<$width>(element, header.big_endian));
                    $value
                })
                .collect()
        };
    }
    match (header.kind, header.width) {
        (Kind::Float, 2) => read!(f16, 2, number => number.to_f32()),
        (Kind::Float, 4) => read!(f32, 4, number => number),
        (Kind::Float, _) => read!(f64, 8, number => number as f32),
        (Kind::Signed, 1) => read!(i8, 1, number => f32::from(number)),
        (Kind::Signed, 2) => read!(i16, 2, number => f32::from(number)),
        (Kind::Signed, 4) => read!(i32, 4, number => number as f32),
        (Kind::Signed, _) => read!(i64, 8, number => number as f32),
        (Kind::Unsigned, 2) => read!(u16, 2, number => f32::from(number)),
        (Kind::Unsigned, 4) => read!(u32, 4, number => number as f32),
        (Kind::Unsigned, 8) => read!(u64, 8, number => number as f32),
        _ => bytes.iter().map(|&byte| f32::from(byte)).collect(),
    }
}

/// Values whose first axis runs fastest, in the order in which the last one does.
fn row_major(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let mut index = vec![0; shape.len()];
    let next = |_| {
        let mut place = 0;
        for (&at, &size) in index.iter().zip(shape).rev() {
            place = place * size + at;
        }
        for (at, &size) in index.iter_mut().zip(shape).rev() {
            *at += 1;
            if *at < size {
                break;
            }
            *at = 0;
        }
        values[place]
    };
    (0..values.len()).map(next).collect()
}

/// An array to be written.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// In row-major order, as many as the shape says.
    F32(&'a [usize], &'a [f32]),
    /// In row-major order, as many as the shape says.
    I32(&'a [usize], &'a [i32]),
    /// One text.
    Text(&'a str),
}

/// Writes a `.npz`, whole or not at all. The same arrays give the same bytes.
pub fn write(path: &Path, arrays: &[(&str, Values)]) -> Result<()> {
    let mut output = Output::create(path)?;
    // Packed in memory: a writer of archives that cannot write says so on the terminal, and not why.
    packed(arrays).and_then(|bytes| output.file().write_all(&bytes)).map_err(|error| output.error(error))?;
    Ok(output.finish()?)
}

fn packed(arrays: &[(&str, Values)]) -> io::Result<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, values) in arrays {
        let (descr, shape, bytes) = match values {
            Values::F32(shape, values) => {
                ("<f4".into(), *shape, little_endian(values, |value| value.to_le_bytes()))
            }
            Values::I32(shape, values) => {
                ("<i4".into(), *shape, little_endian(values, |value| value.to_le_bytes()))
            }
            Values::Text(text) => {
                // NumPy has no type for a text of no characters.
                let codes: Vec<char> = if text.is_empty() { vec!['\0'] } else { text.chars().collect() };
                let bytes = little_endian(&codes, |code| u32::from(code).to_le_bytes());
                (format!("<U{}", codes.len()), &[][..], bytes)
            }
        };
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .large_file(bytes.len() as u64 >= u64::from(u32::MAX) - LONGEST_HEADER);
        zip.start_file(format!("{name}.npy"), options)?;
        zip.write_all(&npy_header(&descr, shape))?;
        zip.write_all(&bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}

fn little_endian<T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

/// Version 1.0, filled up with spaces so that the values begin at a multiple of 64.
fn npy_header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    let start = b"\x93NUMPY\x01\x00";
    let filled = (start.len() + 2 + text.len() + 1).next_multiple_of(64) - start.len() - 2;
    text.extend(std::iter::repeat_n(' ', filled - text.len() - 1));
    text.push('\n');
    [&start[..], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of entries given as bytes.
    fn zipped(entries: &[(&str, &[u8], CompressionMethod)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.npz");
        let mut zip = ZipWriter::new(fs::File::create(&path).unwrap());
        for (name, bytes, method) in entries {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(*method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        (folder, path)
    }

    fn array(descr: &str, shape: &[usize], values: &[u8]) -> Vec<u8> {
        [npy_header(descr, shape), values.to_vec()].concat()
    }

    fn numbers_of(entry: &[u8]) -> Result<(Vec<usize>, Vec<f32>)> {
        let (_folder, path) = zipped(&[("a.npy", entry, CompressionMethod::Deflated)]);
        Npz::open(&path)?.numbers("a")
    }

    #[test]
    fn what_is_written_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.npz");
        let values = [0.5f32, -1.25, 3.0, f32::MAX, 0.0, 7.0];
        let arrays = [
            ("numbers", Values::F32(&[1, 2, 3], &values)),
            ("mask", Values::I32(&[4], &[1, 0, -7, 65_536])),
            ("words", Values::Text("naïve ☂ 🦦")),
            ("nothing", Values::Text("")),
        ];
        write(&path, &arrays).unwrap();
        let bytes = fs::read(&path).unwrap();
        write(&path, &arrays).unwrap();
        assert_eq!(bytes, fs::read(&path).unwrap());
        let mut file = Npz::open(&path).unwrap();
        assert_eq!(file.numbers("numbers").unwrap(), (vec![1, 2, 3], values.to_vec()));
        assert_eq!(file.shape("numbers").unwrap(), [1, 2, 3]);
        assert_eq!(file.numbers("mask").unwrap().1, [1.0, 0.0, -7.0, 65_536.0]);
        assert_eq!(file.text("words").unwrap(), "naïve ☂ 🦦");
        assert_eq!(file.text("nothing").unwrap(), "");
        assert!(file.has("mask") && !file.has("masks"));
        assert!(file.numbers("masks").unwrap_err().to_string().contains("masks: is missing"));
        assert!(file.text("mask").is_err() && file.numbers("words").is_err());
    }

    #[test]
    fn types_and_orders_are_converted() {
        let big: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|value| value.to_be_bytes()).collect();
        assert_eq!(numbers_of(&array(">f8", &[2], &big)).unwrap().1, [1.5, -2.0]);
        assert_eq!(numbers_of(&array("|b1", &[3], &[1, 0, 1])).unwrap().1, [1.0, 0.0, 1.0]);
        assert_eq!(numbers_of(&array("|i1", &[1], &[0xff])).unwrap().1, [-1.0]);
        assert_eq!(numbers_of(&array("<f2", &[1], &[0x00, 0x3c])).unwrap().1, [1.0]);
        let columns: Vec<u8> =
            [0.0f32, 3.0, 1.0, 4.0, 2.0, 5.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let fortran = array("<f4", &[2, 3], &columns);
        let fortran = String::from_utf8_lossy(&fortran[..128]).find("False").map(|at| {
            let mut bytes = fortran.clone();
            bytes[at - 2..at + 3].copy_from_slice(b"True ");
            bytes
        });
        // The lossy text is longer than the bytes by what replaces the first of them.
        assert_eq!(numbers_of(&fortran.unwrap()).unwrap(), (vec![2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    }

    #[test]
    fn hostile_arrays_are_refused_with_a_sentence() {
        let whole = array("<f4", &[2], &[0; 8]);
        for (entry, word) in [
            (array("|O", &[1], b"\x80\x04cos\nsystem\n"), "Python objects"),
            (array("<f4", &[1 << 40], &[0; 8]), "too large"),
            (array("<f4", &[usize::MAX, 2], &[0; 8]), "too large"),
            (array("<f4", &[3], &[0; 8]), "8 of 12 bytes"),
            (array("<f4", &[1], &[0; 8]), "goes on"),
            (array("<c8", &[1], &[0; 8]), "<c8"),
            (whole[..40].to_vec(), "header"),
            (whole[..5].to_vec(), "cut off"),
            (b"PK and other things, but no array".to_vec(), "NumPy's format"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), "bytes long"),
            (b"\x93NUMPY\x09\x00\x10\x00".to_vec(), "version 9"),
        ] {
            let error = numbers_of(&entry).unwrap_err();
            assert!(
                error.to_string().contains(word) && error.to_string().contains("file.npz"),
                "{word}: {error}"
            );
            assert!(error.remedy().is_some());
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        // 64 MiB of zeros behind a header that announces four bytes.
        let bomb = array("<f4", &[1], &vec![0; 64 << 20]);
        let (_folder, path) = zipped(&[("a.npy", &bomb, CompressionMethod::Deflated)]);
        assert!(fs::metadata(&path).unwrap().len() < 1 << 20);
        assert!(Npz::open(&path).unwrap().numbers("a").unwrap_err().to_string().contains("goes on"));
        // A text of the same size.
        let bomb = array("<U16777216", &[], &vec![0; 64 << 20]);
        let (_folder, path) = zipped(&[("a.npy", &bomb, CompressionMethod::Deflated)]);
        assert!(Npz::open(&path).unwrap().text("a").unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn damaged_archives_are_refused() {
        let (folder, path) = zipped(&[("a.npy", &array("<f4", &[2], &[7; 8]), CompressionMethod::Stored)]);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Npz::open(&path).and_then(|mut file| file.numbers("a")).is_err(), "{length}");
        }
        // A flipped bit in the values: the archive's checksum.
        let at = whole.windows(8).position(|window| window == [7; 8]).unwrap();
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(Npz::open(&path).unwrap().numbers("a").unwrap_err().to_string().contains("damaged"));
        fs::write(&path, "<html>404</html>").unwrap();
        assert!(Npz::open(&path).unwrap_err().to_string().contains("not a whole .npz"));
        assert!(Npz::open(folder.path()).is_err() && Npz::open(Path::new("/nowhere.npz")).is_err());
    }
}
