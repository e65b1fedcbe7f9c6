// Package strictjson reads one JSON object in a single pass, and refuses what two readers could understand in two ways.
//
// It stands where JSON comes from outside and decides something: the header and the claims of a token, a JWK, the body of
// a request. It refuses, beyond what RFC 8259 calls invalid: a member named twice in one object (names compared decoded, so
// "exp" and "\u0065xp" are one), a name that differs from one the caller knows only in case (encoding/json would take "Exp"
// for "exp"), text that is not valid UTF-8, half of a surrogate pair, anything after the object, and what lies beyond the
// bounds below. It takes everything else: escapes in names, any white space, unknown members, nesting up to [MaxDepth].
//
// It allocates nothing, except for names written with escapes and for objects of more than 24 members; the caller decides
// what to copy. Its errors say where (a byte offset) and never what: the data may be secret.
package strictjson
