//! ConfigMap: texts by name. The one called `istio` in the root namespace configures the mesh.
use std::collections::BTreeMap;

use crate::schema::Base64Bytes;

message! {
    pub struct ConfigMap "ConfigMap" tolerant {
        data: BTreeMap<String, String> = honoured,
        binary_data: BTreeMap<String, Base64Bytes> = honoured,
        immutable: Option<bool> = honoured,
    }
}
