//! The two declarations that kinds are written with.

/// Declares a message: struct, decoder and schema.
///
/// ```text
/// message! {
///     /// What it is.
///     pub struct HttpRewrite "HTTPRewrite" {
///         /// What it does.
///         uri: Option<String> = honoured,
///         stat_prefix: Option<String> = warned("no statistics are kept per route yet"),
///     }
///     oneof [uri, uri_regex_rewrite]
/// }
/// ```
///
/// Statuses: `honoured`, `partly("note")` (takes effect but for the note), `warned("note")` (decoded, told to the user, no effect), `refused("note")` (an error).
/// `tolerant` after the name marks a Kubernetes message whose other fields are known to be of no use to Lateen.
/// JSON names are the lowerCamelCase of the Rust names; both spellings are read, as proto3 JSON wants. A name that is
/// formed otherwise is given with `field as "clusterIP": …`.
macro_rules! message {
    (
        $(#[$meta:meta])*
        pub struct $name:ident $json:literal $($flag:ident)? {
            $( $(#[$field_meta:meta])* $field:ident $(as $key:literal)? : $ty:ty = $status:ident $(($note:expr))? ),* $(,)?
        }
        $( oneof [ $($one:ident),+ $(,)? ] )*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        impl $name {
            /// Every field with its status, from which the coverage page and the messages come.
            pub const MESSAGE: $crate::schema::Message = $crate::schema::Message {
                name: $json,
                tolerant: message!(@flag $($flag)?),
                fields: &[ $( $crate::schema::Field {
                    name: message!(@name $field $($key)?),
                    status: message!(@status $status $(($note))?),
                    shape: <$ty as $crate::schema::Decode>::shape,
                }, )* ],
                oneofs: &[ $( &[ $($crate::schema::field::plain_name(stringify!($one))),+ ], )* ],
            };
        }

        impl $crate::schema::Decode for $name {
            fn shape() -> $crate::schema::Shape {
                $crate::schema::Shape::Message(const { &$name::MESSAGE })
            }

            fn decode(node: &$crate::yaml::Node, cx: &mut $crate::schema::Context<'_>) -> Option<Self> {
                #[allow(unused_mut)]
                let mut message = Self::default();
                let _entries = cx.open(node, const { &$name::MESSAGE })?;
                $(
                    if let Some(value) = cx.field(_entries, message!(@name $field $($key)?)) {
                        message.$field = value;
                    }
                )*
                Some(message)
            }
        }
    };
    (@name $field:ident) => { $crate::schema::field::plain_name(stringify!($field)) };
    (@name $field:ident $key:literal) => { $key };
    (@flag) => { false };
    (@flag tolerant) => { true };
    (@status honoured) => { $crate::schema::Status::Honoured };
    (@status partly($note:expr)) => { $crate::schema::Status::Partly($note) };
    (@status warned($note:expr)) => { $crate::schema::Status::Warned($note) };
    (@status refused($note:expr)) => { $crate::schema::Status::Refused($note) };
}

/// Declares an enum with the spelling of each value; the first is the default, as number 0 is in proto3.
macro_rules! enumeration {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(#[$first_meta:meta])* $first:ident = $first_text:literal
            $(, $(#[$variant_meta:meta])* $variant:ident = $text:literal )* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            #[default]
            $(#[$first_meta])* $first,
            $( $(#[$variant_meta])* $variant, )*
        }

        impl $name {
            /// The accepted spellings, in the order of declaration.
            pub const NAMES: &'static [&'static str] = &[$first_text $(, $text)*];

            /// The spelling in configuration.
            pub const fn as_str(self) -> &'static str {
                match self {
                    Self::$first => $first_text,
                    $( Self::$variant => $text, )*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::schema::Decode for $name {
            fn shape() -> $crate::schema::Shape {
                $crate::schema::Shape::Enum(Self::NAMES)
            }

            fn decode(node: &$crate::yaml::Node, cx: &mut $crate::schema::Context<'_>) -> Option<Self> {
                match cx.choice(node, Self::NAMES)? {
                    $first_text => Some(Self::$first),
                    $( $text => Some(Self::$variant), )*
                    _ => None,
                }
            }
        }
    };
}
