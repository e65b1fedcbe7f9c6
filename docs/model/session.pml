/*
 * A session revoked while tokens of it are being made (PROTOCOL 14), for spin 6.5 or later.
 *
 * One session, its record moved on by compare-and-set; an issuer that refreshes, one that revokes; one agent. A token
 * lives one lifetime; a revocation is in the log until its own end, then whoever keeps the log drops it. The assertion
 * is promise 1 for a sid: once the receipt says confirmed, the agent accepts no token of the session. Lease and fence
 * are lease.pml's business: here "the fleet has it" is that the agent applied it.
 *
 * Time is the agent's clock. The clock that drops revocations is ahead of it by SKEW, the worst that is allowed.
 *
 * Mutations, all of rule 14: EXP_AT_SIGNING NO_COMPARE NO_SECOND_APPEND NO_SKEW CONFIRM_FIRST_APPEND
 * CONFIRM_BEFORE_CLOSING.
 */

#ifndef T
#define T 7			/* the last moment */
#endif
#define LIFETIME 2
#define SKEW 1
#ifdef MUTATE_NO_SKEW
#define MARGIN 0
#else
#define MARGIN SKEW
#endif

byte now;

/* The record: a revision for compare-and-set, and the latest exp that it ever fixed. */
byte revision;
byte latest;
bit closed;

/* One refresh under way, and the newest token: an issuer may be slow between any two steps. */
byte refresh;			/* 0 none, 1 record read, 2 record written, to be signed */
byte base;			/* the revision that it read */
byte fixed;			/* the exp that it wrote */
byte token;			/* the exp of the token that lives longest, 0: none */
byte refreshes = 2;

/* The revocation, and its second append where the first does not outlive every token. */
byte step;			/* 0 none, 1 appended, 2 record read to be closed, 3 closed, 4 appended again or no need to, 5 confirmed */
byte closing;			/* the revision read */
byte until;			/* the end of the revocation in the log, 0: it has none */
byte known;			/* the end of the revocation as the agent applied it */
bit noticed;			/* the revoking issuer restarted: it finds its entry in the log and goes on from there */

#define MAX(a, b) ((a) > (b) -> (a) : (b))

active proctype Clock() {
end:	do
	:: d_step { now < T -> now++;
		/* dropped from log and checkpoint, by the clock that is ahead; the agent follows */
		if
		:: until && now + SKEW >= until -> until = 0
		:: else
		fi;
		if
		:: known && now + SKEW >= known -> known = 0
		:: else
		fi }
	od
}

active proctype Refresher() {
end:	do
	:: d_step { refresh == 0 && refreshes && !closed -> refreshes--; refresh = 1; base = revision }
	:: d_step { refresh == 1 ->
		if
#ifdef MUTATE_NO_COMPARE
		:: true ->
			closed = 0;
#else
		:: revision == base && !closed ->
#endif
			revision++; fixed = now + LIFETIME; latest = MAX(latest, fixed); refresh = 2
#ifndef MUTATE_NO_COMPARE
		:: else -> refresh = 0; base = 0
#endif
		fi }
	:: d_step { refresh == 2 ->
#ifdef MUTATE_EXP_AT_SIGNING
		token = MAX(token, now + LIFETIME);
#else
		token = MAX(token, fixed);
#endif
		refresh = 0; fixed = 0; base = 0 }
	od
}

active proctype Revoker() {
end:	do
	/* For a bare sid the longest that a token made by now can live. */
	:: d_step { step == 0 -> step = 1; until = now + LIFETIME + MARGIN }

	:: d_step { step == 1 -> step = 2; closing = revision }
	:: d_step { step == 2 ->
		if
		:: revision == closing -> revision++; closed = 1; step = 3
		:: else -> step = 1
		fi;
		closing = 0 }
	:: d_step { step == 3 ->
#ifndef MUTATE_NO_SECOND_APPEND
		if
		:: until < latest + MARGIN -> until = latest + MARGIN
		:: else
		fi;
		if
		:: now + SKEW >= until -> until = 0
		:: else
		fi;
#endif
		step = 4 }
#ifdef MUTATE_CONFIRM_BEFORE_CLOSING
	:: d_step { step >= 1 && step < 4 && known -> step = 5 }
#endif
#ifdef MUTATE_CONFIRM_FIRST_APPEND
	:: d_step { step == 4 && known -> step = 5 }
#else
	:: d_step { step == 4 && known >= until -> step = 5 }
#endif

	/* It restarts: what it had in mind is lost, the entry is in the log, and who reads it closes the record. */
	:: d_step { step >= 1 && step < 5 && !noticed -> noticed = 1; step = 1; closing = 0 }
	od
}

active proctype Agent() {
end:	do
	:: d_step { known < until -> known = until }
	:: d_step { step == 5 && token > now -> assert(known > 0) }
	od
}
