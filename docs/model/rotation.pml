/*
 * A rotation (PROTOCOL 16, 17), for spin 6.5 or later.
 *
 * Three entries: 1 the new key announced, 2 activated, 3 the old one retired. Two issuers that sign, with clocks that
 * differ by DIFFER; two agents, one of them looked at. What lease.pml shows is taken for granted: an announcement is confirmed when each agent
 * has applied it or holds no lease, and a lease means that all is applied that was durable when it was asked for. The
 * assertion is promise 2: no agent that vouches refuses a token, whoever signed it, however late it comes.
 *
 * Mutations by PROTOCOL's rule: 16 SIGN_BY_STATE ACTIVATE_UNCONFIRMED; 17 RETIRE_AT_ONCE RETIRE_IN_ACTIVATION
 * NO_CLOCK_BOUND SIGN_UNREFRESHED FRESH_FROM_READ_BACK FRESH_BEFORE_READ_BACK.
 */

#ifndef T
#define T 5			/* the last moment */
#endif
#define S 2			/* how long an issuer signs without another tick */
#define DIFFER 2		/* bound on the difference of issuers' clocks: issuer 1 is that far ahead */

#define CLOCK(i) (now + DIFFER * (i))

byte now;

/* The log. */
byte head = 1;
byte activated;			/* 1 + when the activation was durable, 0: it is not */
byte retired;			/* the time that the retirement states */
#ifdef MUTATE_RETIRE_IN_ACTIVATION
byte stated;			/* the same, in an activation on its way */
#endif

/* The agent that checks. Another could only delay the confirmation: behind is whether it does. */
byte applied;
bit lease = 1;
bit behind = 1;

/* Issuers. */
byte read[2];
byte began[2];			/* 1 + the start of a tick of its own on its way, 0: none */
byte stands[2];			/* 1 + the entries before that tick, 0: it is not durable yet */
byte fresh[2];			/* 1 + the start of its last tick that it has read back */
bit confirmed[2];		/* it has itself had the announcement confirmed */

/* One token; of those by the old key the one that states the latest time. */
byte key;			/* 0 none, 1 signed with the old key, 2 with the new one */
byte iat;

/* A tick begun S ago is as good as none. */
inline expire(i) {
	if
	:: fresh[i] && now + 1 - fresh[i] >= S -> fresh[i] = 0
	:: else
	fi;
#ifndef MUTATE_FRESH_FROM_READ_BACK
	if
	:: began[i] && now + 1 - began[i] >= S -> began[i] = 0; stands[i] = 0
	:: else
	fi
#endif
}

proctype Clock() {
end:	do
	:: d_step { now < T -> now++; expire(0); expire(1) }
	od
}

#ifdef MUTATE_SIGN_UNREFRESHED
#define MAY_SIGN true
#else
#define MAY_SIGN fresh[i]
#endif
#ifdef MUTATE_FRESH_FROM_READ_BACK
#define FRESH_FROM now + 1
#else
#define FRESH_FROM began[i]
#endif
#ifdef MUTATE_FRESH_BEFORE_READ_BACK
#define READ_BACK stands[i]
#else
#define READ_BACK (stands[i] && read[i] + 1 >= stands[i])
#endif
#ifdef MUTATE_SIGN_BY_STATE		/* a bucket says that the key is active, or a timer has run out */
#define SIGNS_NEW (read[i] >= 1)
#else
#define SIGNS_NEW (read[i] >= 2)
#endif
#ifdef MUTATE_ACTIVATE_UNCONFIRMED
#define MAY_ACTIVATE read[i] == 1
#else
#define MAY_ACTIVATE confirmed[i]
#endif
#ifdef MUTATE_RETIRE_AT_ONCE
#define RETIRES true
#else
#define RETIRES (now + 1 - activated >= S)
#endif
#ifdef MUTATE_NO_CLOCK_BOUND
#define BOUND 0
#else
#define BOUND DIFFER
#endif

proctype Issuer(bit i) {
end:	do
	:: d_step { read[i] < head -> read[i]++ }

	/* A tick of its own: sent, durable, read back (only then all before it is read too), or lost. */
	:: d_step { !began[i] -> began[i] = now + 1 }
	:: d_step { began[i] && !stands[i] -> stands[i] = head + 1 }
	:: d_step { READ_BACK ->
		fresh[i] = FRESH_FROM; began[i] = 0; stands[i] = 0; expire(i) }
	:: d_step { began[i] -> began[i] = 0; stands[i] = 0 }

	:: d_step { MAY_SIGN && SIGNS_NEW -> key = 2; iat = 0 }
	:: d_step { MAY_SIGN && !SIGNS_NEW && !(key == 1 && iat >= CLOCK(i)) -> key = 1; iat = CLOCK(i) }

	:: d_step { !confirmed[i] && read[i] >= 1 && (applied >= 1 || !lease) && !behind ->
		confirmed[i] = 1 }

	/* Both are appended only if no other key entry is behind the one that was read last (PROTOCOL 18). */
#ifdef MUTATE_RETIRE_IN_ACTIVATION
	:: d_step { head == 1 && read[i] == 1 && MAY_ACTIVATE && !stated -> stated = CLOCK(i) + S + BOUND }
	:: d_step { head == 1 && stated -> head = 2; activated = now + 1; retired = stated }
#else
	:: d_step { head == 1 && read[i] == 1 && MAY_ACTIVATE -> head = 2; activated = now + 1 }
	:: d_step { head == 2 && read[i] == 2 && RETIRES -> head = 3; retired = CLOCK(i) + BOUND }
#endif

	/* It restarts. */
	:: d_step { began[i] || fresh[i] || confirmed[i] -> began[i] = 0; stands[i] = 0; fresh[i] = 0; confirmed[i] = 0 }
	od
}

#ifdef MUTATE_RETIRE_IN_ACTIVATION
#define RETIREMENT 2
#else
#define RETIREMENT 3
#endif

proctype Agent() {
end:	do
	:: d_step { applied < head -> applied++ }
	:: d_step { lease -> lease = 0 }
	:: d_step { !lease && applied == head -> lease = 1 }
	:: d_step { lease && key ->
		assert(key == 2 || applied < RETIREMENT || iat <= retired);
		assert(key == 1 || applied >= 1) }
	:: d_step { behind -> behind = 0 }
	od
}

init {
	atomic { run Clock(); run Issuer(0); run Issuer(1); run Agent() }
}
