//! Protobuf messages of which a few fields are wanted: read field by field, without a type for each.

use containerd_shim_protos::protobuf::CodedInputStream;
use containerd_shim_protos::protobuf::rt::WireType;

use crate::error::{Context, Error, Result};

/// A field's value; fields of other wire types are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// Also a boolean or an enumeration.
    Number(u64),
    /// A string, bytes or a message.
    Bytes(Vec<u8>),
}

/// Calls `take` with each field's number and value, in the message's order. Its length was bounded by
/// whoever read it.
pub(crate) fn each(message: &[u8], mut take: impl FnMut(u32, Field) -> Result<()>) -> Result<()> {
    let mut input = CodedInputStream::from_bytes(message);
    while let Some((number, field)) = next(&mut input).map_err(|e| Error::invalid(format!("message: {e}")))? {
        if let Some(field) = field {
            take(number, field)?;
        }
    }
    Ok(())
}

fn next(input: &mut CodedInputStream<'_>) -> protobuf::Result<Option<(u32, Option<Field>)>> {
    let Some(tag) = input.read_raw_tag_or_eof()? else { return Ok(None) };
    let field = match WireType::new(tag & 7) {
        Some(WireType::Varint) => Some(Field::Number(input.read_uint64()?)),
        Some(WireType::LengthDelimited) => Some(Field::Bytes(input.read_bytes()?)),
        Some(fixed @ (WireType::Fixed32 | WireType::Fixed64)) => {
            input.skip_field(fixed)?;
            None
        }
        // Groups: no message of today has one.
        _ => return Err(std::io::Error::other(format!("unknown wire type {}", tag & 7)).into()),
    };
    Ok(Some((tag >> 3, field)))
}

impl Field {
    pub(crate) fn text(self) -> Result<String> {
        String::from_utf8(self.bytes()?).context("text")
    }

    pub(crate) fn bytes(self) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(Error::invalid("a number stands where text is wanted")),
        }
    }

    /// Protobuf's int64 and int32 travel as 64 bits in two's complement.
    #[allow(clippy::cast_possible_wrap)]
    pub(crate) fn number(self) -> Result<i64> {
        match self {
            Self::Number(number) => Ok(number as i64),
            Self::Bytes(_) => Err(Error::invalid("text stands where a number is wanted")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_order_and_broken_messages_are_refused() {
        let mut seen = Vec::new();
        let message = b"\x0a\x02hi\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x1d\0\0\0\0\x22\0";
        each(message, |number, field| {
            seen.push((number, field));
            Ok(())
        })
        .expect("message");
        let wanted =
            [(1, Field::Bytes(b"hi".to_vec())), (2, Field::Number(u64::MAX)), (4, Field::Bytes(vec![]))];
        assert_eq!(seen, wanted);
        assert_eq!(Field::Number(u64::MAX).number(), Ok(-1));
        for broken in [&b"\x0a\x05hi"[..], b"\x0a\xff\xff\xff\xff\x0f", b"\x0f", b"\x10"] {
            let e = each(broken, |_, _| Ok(())).expect_err("broken");
            assert!(e.to_string().starts_with("message: "), "{e}");
        }
        assert!(each(b"\x0a\x01\xff", |_, field| field.text().map(drop)).is_err(), "not UTF-8");
    }
}
