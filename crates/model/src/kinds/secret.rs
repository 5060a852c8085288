//! Secret: certificates and keys that gateways refer to by `credentialName`.
use std::collections::BTreeMap;

use crate::schema::Base64Bytes;

message! {
    pub struct Secret "Secret" tolerant {
        data: BTreeMap<String, Base64Bytes> = honoured,
        /// Wins over `data`.
        string_data: BTreeMap<String, String> = honoured,
        r#type: Option<String> = honoured,
        immutable: Option<bool> = honoured,
    }
}

impl Secret {
    /// The content of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.string_data.get(key).map(String::as_bytes).or_else(|| self.data.get(key).map(|bytes| bytes.0.as_slice()))
    }
}
