//! ServiceAccount: the name that a workload's identity carries.

message! {
    pub struct ServiceAccount "ServiceAccount" tolerant {
    }
}
