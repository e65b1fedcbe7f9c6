package e2e

// The reasons that several differences have.
const (
	words55   = "5.5, which API.md names, has these words; Debian's 5.2.2 has others"
	account55 = "5.5 refuses the refresh of a user who is gone or disabled; Debian's 5.2.2 does not look"
	words     = "the place of the fault is the same; the words are Python's parser's own, and no client reads them"
	metadata  = "a browsable API's description of a view is of no use here: 204 with Allow says what there is"
	slash     = "API.md: the endpoints answer with and without the slash; Django needs a middleware for that, and loses the body then"
	typFirst  = "what kind a token of ours is, its header says, and that is judged before the signature"
	typeless  = "a token that does not say what it is for is of no kind: it is refused everywhere, with one sentence"
	userText  = "API.md: user_id is text, as in 5.5; Debian's 5.2.2 makes a number of a number"
	userTexts = userText + ". And 5.2.2 copies iat of the refresh token, so that the lifetime seems longer"
	ended     = "whoever is disabled or deleted has no token left: all of theirs are revoked, on every agent"
	retry     = "API.md: a retry within issuer.refresh_grace gets the same successor"
)

// meant are the differences that are so on purpose. The first that fits is taken.
var meant = []difference{
	{"*: expired *|sliding refresh: expired", "body", "Token is invalid or expired", "Token is expired", words55},
	{"*", "body", "Token is invalid or expired", "Token is invalid", words55},
	{"*: tampered access|*: bad_signature access|*: tampered sliding|*: bad_signature sliding|*: expired access|*: expired sliding", "body", "Token is invalid or expired", "Token has wrong type", typFirst},
	{"*: no_type *|*: no_type", "body", "Token has no type", "Token has wrong type", typeless},
	{"verify: no_type *", "status", "200", "401", typeless},
	{"verify: no_type *", "body", "{}", `{"detail":"Token has wrong type","code":"token_not_valid"}`, typeless},
	{"verify: no_type *", "www", "", "", typeless},
	{"*: no_exp *|*: no_exp", "body", "Token has no 'exp' claim", "Token is invalid", "a token without exp is malformed, as one without any other claim that it needs"},

	{"*: a word for JSON|*: a comma too many", "body", "Expecting property name enclosed in double quotes", "Expecting value", words},
	{"*: JSON and more", "body", "Extra data", "Expecting value", words},
	{"*: bad UTF-8", "body", "", "", words},

	{"*: OPTIONS", "status", "200", "204", metadata},
	{"*: OPTIONS", "body", "", "", metadata},
	{"*: OPTIONS", "type", "application/json", "", metadata},
	{"*: no slash", "status", "404", "400", slash},
	{"*: no slash", "body", "", "", slash},
	{"*: no slash", "allow", "", "", slash},
	{"*: no slash", "type", "text/html", "application/json", slash},

	{"obtain: *|sliding: *", "claims", "user_id=1", `user_id="1"`, userText},
	{"refresh: right*|refresh: blanks around|refresh: foreign", "claims", "", "", userTexts},
	{"refresh: unknown user|refresh: disabled user|refresh: user disabled since|refresh: deleted user", "status", "200", "401", account55},
	{"refresh: unknown user|refresh: disabled user|refresh: user disabled since|refresh: deleted user", "body",
		`{"access":"a token","refresh":"a token"}`, `{"detail":"No active account found for the given token."}`, account55},
	{"refresh: unknown user|refresh: disabled user|refresh: user disabled since|refresh: deleted user", "www", "", "", account55},
	{"refresh: unknown user|refresh: disabled user|refresh: user disabled since|refresh: deleted user", "claims", "", "", account55},

	{"sliding refresh: unknown user|sliding refresh: disabled user|sliding refresh: user disabled since", "status", "200", "401", account55},
	{"sliding refresh: unknown user|sliding refresh: disabled user|sliding refresh: user disabled since", "body",
		`{"token":"a token"}`, `{"detail":"No active account found for the given token."}`, account55},
	{"sliding refresh: unknown user|sliding refresh: disabled user|sliding refresh: user disabled since", "www", "", `Bearer realm="api"`, account55},
	{"sliding refresh: unknown user|sliding refresh: disabled user|sliding refresh: user disabled since", "claims", "", "", account55},
	{"sliding refresh: *", "claims", "", "", userText + ". And refresh_exp is counted from iat, which differs by a second or two"},
	{"sliding refresh: past its end", "body", "Token 'refresh_exp' claim has expired", "Token is expired", "one sentence for whatever has expired"},
	{"sliding refresh: without an end", "body", "Token has no 'refresh_exp' claim", "Token is invalid", "one sentence for whatever lacks a claim"},
	{"sliding refresh: a refresh token", "body", "Token is blacklisted", "Token has wrong type", typFirst},

	{"verify: disabled user|verify: user disabled since|verify: deleted user", "status", "200", "400", ended},
	{"verify: disabled user|verify: user disabled since|verify: deleted user", "body", "{}", `{"non_field_errors":["Token is blacklisted"]}`, ended},
	{"blacklist: disabled user|blacklist: user disabled since|blacklist: deleted user", "status", "200", "401", ended},
	{"blacklist: disabled user|blacklist: user disabled since|blacklist: deleted user", "body", "{}", `{"detail":"Token is blacklisted","code":"token_not_valid"}`, ended},
	{"blacklist: disabled user|blacklist: user disabled since|blacklist: deleted user", "www", "", `Bearer realm="api"`, ended},

	{"refresh: again at once", "status", "401", "200", retry},
	{"refresh: again at once", "body", "", "", retry},
	{"refresh: again at once", "www", "", "", retry},
	{"refresh: again at once", "claims", "", "", retry},
}
