//! The header of a `.npy`: a dictionary in Python's notation that says type, order and shape.
//!
//! Format: `numpy.lib.format`, versions 1.0 to 3.0. Read as data, never evaluated.

/// What an array is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Unsigned,
    Signed,
    Float,
    /// So many characters, of four bytes each.
    Text,
}

/// Everything about an array but its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// Bytes of an element.
    pub width: usize,
    pub big_endian: bool,
    /// Whether the first axis runs fastest, not the last.
    pub fortran: bool,
    pub shape: Vec<usize>,
}

impl Header {
    /// Elements, unless they are more than can be counted.
    pub fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))
    }

    /// Reads the dictionary; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        let mut cursor = Cursor(text);
        cursor.expect('{')?;
        while !cursor.take('}') {
            let key = cursor.quoted()?;
            cursor.expect(':')?;
            match key {
                "descr" => descr = Some(cursor.descr()?),
                "fortran_order" => fortran = Some(cursor.boolean()?),
                "shape" => shape = Some(cursor.shape()?),
                other => return Err(format!("its header has an unknown entry `{other}`")),
            }
            if !cursor.take(',') {
                cursor.expect('}')?;
                break;
            }
        }
        let (Some((kind, width, big_endian)), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return Err("its header lacks type, order or shape".into());
        };
        Ok(Self { kind, width, big_endian, fortran, shape })
    }
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn take(&mut self, wanted: char) -> bool {
        let rest = self.0.trim_start().strip_prefix(wanted);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.take(wanted) { Ok(()) } else { Err(format!("its header lacks a `{wanted}`")) }
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        let quote = if self.take('\'') { '\'' } else { self.expect('"').map(|()| '"')? };
        let (inner, rest) = self.0.split_once(quote).ok_or("its header has an open quote")?;
        self.0 = rest;
        Ok(inner)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        let rest = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = rest.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err("its header says neither True nor False for the order".into())
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        self.expect('(')?;
        let (inner, rest) = self.0.split_once(')').ok_or("its header has an open bracket")?;
        self.0 = rest;
        let sizes = inner.split(',').map(str::trim).filter(|size| !size.is_empty());
        let shape: Vec<usize> = sizes
            .map(|size| {
                size.trim_end_matches('L').parse().map_err(|_| format!("its header has a size `{size}`"))
            })
            .collect::<Result<_, _>>()?;
        if shape.len() > 8 { Err(format!("it has {} axes", shape.len())) } else { Ok(shape) }
    }

    /// Kind, width of an element in bytes, and whether its first byte is the highest.
    fn descr(&mut self) -> Result<(Kind, usize, bool), String> {
        if self.0.trim_start().starts_with('[') {
            return Err("it holds records, not numbers".into());
        }
        let descr = self.quoted()?;
        if descr.contains('O') {
            return Err("it holds Python objects, which would have to be run and not read".into());
        }
        let unknown = || format!("its type is `{descr}`, not a number or a text");
        let mut chars = descr.chars();
        let (order, letter) = (chars.next().ok_or_else(unknown)?, chars.next().ok_or_else(unknown)?);
        let size: usize = chars.as_str().parse().map_err(|_| unknown())?;
        let big_endian = match order {
            '<' | '|' | '=' => false,
            '>' => true,
            _ => return Err(unknown()),
        };
        let kind = match (letter, size) {
            ('b', 1) => Kind::Bool,
            ('u', 1 | 2 | 4 | 8) => Kind::Unsigned,
            ('i', 1 | 2 | 4 | 8) => Kind::Signed,
            ('f', 2 | 4 | 8) => Kind::Float,
            ('U', _) => Kind::Text,
            _ => return Err(unknown()),
        };
        let width = if kind == Kind::Text { size.checked_mul(4).ok_or_else(unknown)? } else { size };
        Ok((kind, width, big_endian))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_numpy_writes_is_understood() {
        let header = |text: &str| Header::parse(text).unwrap();
        let plain = header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 256, 3840), }      \n");
        assert_eq!((plain.kind, plain.width, plain.shape.as_slice()), (Kind::Float, 4, &[1, 256, 3840][..]));
        let scalar = header("{'descr': '>U7', 'fortran_order': False, 'shape': (), }");
        assert_eq!((scalar.kind, scalar.width, scalar.big_endian), (Kind::Text, 28, true));
        assert_eq!(scalar.count(), Some(1));
        assert!(header("{'shape': (3,), 'fortran_order': True, 'descr': '|b1'}").fortran);
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for (text, word) in [
            ("", "{"),
            ("{'descr': '<f4'}", "lacks"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "objects"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "records"),
            ("{'descr': '<f3', 'fortran_order': False, 'shape': (1,)}", "<f3"),
            ("{'descr': '<U99999999999999999999', 'fortran_order': False, 'shape': ()}", "type"),
            ("{'descr': '<f4', 'fortran_order': Maybe, 'shape': (1,)}", "order"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "-1"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1", "bracket"),
            ("{'descr': '<f4', 'x': __import__('os'), 'shape': (1,)}", "unknown entry"),
        ] {
            let problem = Header::parse(text).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
        }
        let vast =
            Header::parse("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}");
        assert_eq!(vast.unwrap().count(), None);
    }
}
