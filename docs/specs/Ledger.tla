-------------------------------- MODULE Ledger -------------------------------
(* The counting ledger (architecture, section 3): what can happen, and what   *)
(* must hold. FEAT switches features on (a .cfg each), MUT takes a clause     *)
(* away: with MUT = {} every property holds, without a clause TLC finds a     *)
(* violation. check.py runs all of them.                                      *)
EXTENDS Rounds

\* named, so that a trace says what happened
Begins == \E t \in msg : \E w \in W : Begin(t, w)
Acts == \E t \in acc : Act(t)
Ends == \E t \in run : End(t)
EndIsApplied == \E t \in endm : ApplyEnd(t)
Reports == \E m \in rep : Report(m)
RecallArrives == \E m \in rq : Recalled(m)
RecallIsAnswered == \E a \in ra : RecallAns(a)
Next ==
  \/ \E b \in B : Grant(b) \/ Give(b) \/ ApplyGive(b) \/ ApplyAgain(b) \/ \E k \in 1..2 : RecvGrant(b, k)
  \/ \E s \in S : Suspect(s) \/ Count(s) \/ \E w \in W : Ack(w, s) \/ Fence(w, s)
  \/ \E i \in I : FrontAns(i) \/ Early(i) \/ RetryUnsure(i) \/ Query(i) \/ FrontEvict(i) \/ AskRecv(i) \/ PassOn(i)
       \/ \E f \in F : Arrive(i, f) \/ \E w \in W : Take(i, f, w)
  \/ \E f \in F : Crash(f) \/ Return(f) \/ Break(f) \/ Welcome(f) \/ FrontGen(f) \/ LedgerGack(f)
  \/ \E w \in W : Join(w) \/ Up(w) \/ Die(w) \/ Leave(w) \/ Declare(w) \/ Renew(w) \/ Answer(w) \/ StaleAnswer(w)
       \/ RecvAnswer(w) \/ LoseRenewal(w) \/ Evict(w) \/ Stop(w) \/ Cont(w) \/ Kill(w)
  \/ Begins \/ Acts \/ Ends \/ EndIsApplied \/ Reports \/ RecallArrives \/ RecallIsAnswered
  \/ Tick \/ Put \/ PutRet \/ BeginRound \/ Close \/ Expire \/ Leader
Spec == Init /\ [][Next]_vars

\* ------------------------------------------------------------ safety
\* 1: executions of a pool, and of an account also while its pools change
RunLimit == On("put") \/ \A p \in P : Cardinality(Running(p)) <= Lim(p)
AccountLimit == \A a \in {"A", "B"} : Cardinality({t \in run : Acct(t[2][3]) = a}) <= AcctMost(a)
\* no permit exists twice: in the ledger, and between the ledger and who holds it
Conserve == On("put") \/ \A p \in P : Granted(p) <= Lim(p)
Permits == \A b \in B : Live(b) /\ ep[Fr(b)] = b[2] =>
  /\ (Cardinality(Out(b)) <= held[b] => held[b] + gv[b] <= size[b])
  /\ (dn[b] = <<>> /\ cuts.n = 0 => size[b] = held[b] + gv[b])
\* 6: of a counted session nothing runs that isn't counted, and nothing is counted whose END won't come (2)
NoFencedStart == \A t \in run : sst[Ses(t[2])] = "count" => t \in cnt[Ses(t[2])]
Covered == \A b \in B : Counted(b) => size[b] >= Cardinality({t \in run \cup acc : t[2] = b /\ mem[t[3]] = "in"})
NoGhost == \A s \in S : \A t \in cnt[s] : t \in run \cup acc \cup endm \/ wst[t[3]] = "dead"
\* 7
NoEvictedRun == \A t \in run : mem[t[3]] = "in"
\* once per id; no false 429; changes of limits bind
Steps == bad = "-"

\* ------------------------------------------------------------ liveness
\* everything that is owed is done in the end; crashes, suspicion of the living and top-ups are not owed
Owed ==
  /\ \A b \in B : WF_vars(RecvGrant(b, 1)) /\ WF_vars(ApplyGive(b)) /\ SF_vars(Grant(b) /\ Waiters # {})
  /\ \A s \in S : WF_vars(Count(s)) /\ WF_vars(Suspect(s) /\ ep[s[1]] > s[2])
  /\ \A s \in S, w \in W : M("noack") \/ WF_vars(Ack(w, s))
  /\ \A i \in I : WF_vars(FrontAns(i)) /\ WF_vars(FrontEvict(i)) /\ WF_vars(AskRecv(i))
  /\ \A i \in I, f \in F : SF_vars((\E w \in W : Take(i, f, w)) /\ inv[i].s = "wait")
  /\ WF_vars(Begins) /\ WF_vars(Ends) /\ WF_vars(EndIsApplied)
  /\ WF_vars(BeginRound) /\ WF_vars(Close) /\ WF_vars(RecallArrives) /\ WF_vars(RecallIsAnswered)
  /\ \A w \in W : WF_vars(Declare(w))
FairSpec == Spec /\ Owed
\* 2: the permits of a frontend that is gone come back
ComesBack == \A b \in B : (sst[Ses(b)] # "no" /\ ep[Fr(b)] > b[2]) ~> size[b] = 0
\* 13, where every holder answers: demand within the reservation is never refused and is served
Reserved == \A i \in IG : (inv[i].s = "wait") ~> (inv[i].s = "out")

SymI == Permutations(I \ (IG \cup IB)) \cup Permutations(IG) \cup Permutations(IB)
SymIF == SymI \cup Permutations(F)
SymIFH == SymIF \cup Permutations(H)
==============================================================================
