//! Other people's clients against the broker, over real sockets, in every version each speaks.
//!
//! One test is one client, one version and one case: `paho_python::v311::retained`. Programs for
//! Python, JavaScript, C and Go lie beside this file; each is called with
//! `HOST PORT VERSION CASE PREFIX`, keeps its topics and client identifiers below PREFIX, and
//! exits with 0 when all was as the specification says. `mosquitto.rs` and `rumqttc.rs` do the
//! same from Rust.
//!
//! `scripts/interop-setup` installs the clients. A client that is not there is skipped with a
//! word, or fails its tests with CI=true. `SURGEMQ_TEST_BROKER=HOST:PORT` tests that broker
//! instead of starting `surgemq serve`, so that the programs themselves can be checked with
//! another broker.

#[path = "../common/broker.rs"]
mod broker;
mod mosquitto;
mod process;
mod rumqttc;
mod tools;

/// The cases of one client: for each version its names.
macro_rules! cases {
    ($tool:ident: $($version:ident => $($case:ident)*;)*) => {
        mod $tool {
            $(mod $version {
                $(#[test]
                fn $case() {
                    crate::tools::check(
                        crate::tools::$tool(), stringify!($version), stringify!($case),
                    );
                })*
            })*
        }
    };
}

cases! { paho_python:
    v31 => connect roundtrip retained will session wildcard big order;
    v311 => connect roundtrip retained will session wildcard shared big order;
    v5 => connect roundtrip retained will session wildcard shared big order
          properties request_response topic_alias reason_codes subscription_ids will_delay;
}

cases! { mqtt_js:
    v31 => connect roundtrip retained will session wildcard big order;
    v311 => connect roundtrip retained will session wildcard shared big order;
    v5 => connect roundtrip retained will session wildcard shared big order
          properties request_response topic_alias reason_codes subscription_ids will_delay;
}

cases! { paho_c:
    v31 => connect roundtrip retained will session wildcard big order;
    v311 => connect roundtrip retained will session wildcard shared big order;
    v5 => connect roundtrip retained will session wildcard shared big order
          properties request_response topic_alias reason_codes subscription_ids will_delay;
}

cases! { paho_go:
    v31 => connect roundtrip retained will session wildcard big order;
    v311 => connect roundtrip retained will session wildcard shared big order;
}
