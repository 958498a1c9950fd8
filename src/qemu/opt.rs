//! QEMU's `key=value` option syntax: a comma inside a value is doubled, a NUL is refused.
//!
//! Text from outside only ever becomes a value, never a key or an `id`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::{Error, Result};

/// One option argument under construction.
#[derive(Debug)]
pub(crate) struct Opt(Vec<u8>);

impl Opt {
    /// Starts with the implied first value, the name of a device or machine.
    pub(crate) fn new(name: &str) -> Self {
        Self(name.as_bytes().to_vec())
    }

    /// Adds `,key=value` with the value's commas doubled.
    pub(crate) fn set(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        if !self.0.is_empty() {
            self.0.push(b',');
        }
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        for byte in value.as_ref().as_bytes() {
            self.0.push(*byte);
            if *byte == b',' {
                self.0.push(b',');
            }
        }
        self
    }

    pub(crate) fn into_arg(self) -> OsString {
        OsString::from_vec(self.0)
    }
}

/// A value outside of the option syntax (`-kernel`, `-append`): anything without NUL.
pub(crate) fn plain(what: &str, value: impl AsRef<OsStr>) -> Result<OsString> {
    let value = value.as_ref();
    if value.as_bytes().contains(&0) {
        return Err(Error::invalid(format!("{what} {value:?}: contains a NUL character")));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Pair = (Vec<u8>, Vec<u8>);

    /// How QEMU parses an option string, according to its manual: values end at a single comma; two
    /// commas are one.
    fn parse(text: &[u8]) -> (Vec<u8>, Vec<Pair>) {
        let mut parts: Vec<Vec<u8>> = vec![Vec::new()];
        let mut at = 0;
        while let Some(c) = text.get(at) {
            if *c == b',' && text.get(at + 1) == Some(&b',') {
                parts.last_mut().expect("one").push(b',');
                at += 2;
            } else if *c == b',' {
                parts.push(Vec::new());
                at += 1;
            } else {
                parts.last_mut().expect("one").push(*c);
                at += 1;
            }
        }
        let name = parts.remove(0);
        let pair = |p: Vec<u8>| {
            let eq = p.iter().position(|c| *c == b'=').expect("=");
            (p[..eq].to_vec(), p[eq + 1..].to_vec())
        };
        (name, parts.into_iter().map(pair).collect())
    }

    proptest! {
        // Bytes have no order: the s390x run, in emulation, takes fewer.
        #![proptest_config(ProptestConfig::with_cases(if cfg!(target_arch = "s390x") { 500 } else { 100_000 }))]
        #[test]
        fn any_value_comes_back_as_it_was(a in "[^\0]*", b in "[^\0]*") {
            let arg = Opt::new("socket").set("path", &a).set("serial", &b).into_arg();
            let (name, pairs) = parse(arg.as_bytes());
            prop_assert_eq!(name, b"socket");
            prop_assert_eq!(pairs, vec![
                (b"path".to_vec(), a.into_bytes()),
                (b"serial".to_vec(), b.into_bytes()),
            ]);
        }
    }

    #[test]
    fn a_comma_in_a_path_is_doubled() {
        let arg = Opt::new("socket").set("path", "/tmp/x,logfile=/tmp/evil").into_arg();
        assert_eq!(arg, "socket,path=/tmp/x,,logfile=/tmp/evil");
        assert!(plain("kernel", "a\0b").is_err());
    }
}
