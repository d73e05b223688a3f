/* A stream: micro-batches are labelled and published while its driver may be killed, paused and replaced at any moment.

   docs/protocol/README.md says what is modelled and how to read this; scripts/check_protocol.sh checks it.

   All drivers use one checkpoint. A driver that is paused for ever was killed, and the next one is its restart; one that goes on
   after a pause does not know that it has been replaced. Creating a file exclusively fails if it is there.

   Sets are bits of a number: the images 1 and 2 (both: 3). The alias of the model may move once, from model 0 to model 1; each
   model has a table of predictions of its own. */

#define BATCHES 2
#define NONE 2                  /* no model */
#define IN(part, whole) (((part) & ~(whole)) == 0)

/* The storage. */
byte source = 1;                /* the images that have arrived */
byte alias;                     /* the model that is to label */
byte offsets[BATCHES];          /* Spark's checkpoint: the images of each batch that was begun; */
byte done;                      /*   and how many batches are done */
byte pin[BATCHES];              /* batch-<id>.json: the model of a batch, NONE: not decided yet */
byte table[2];                  /* for each model: the images in the last version of its table, */
byte last[2];                   /*   and the number of that version */

byte begun;                     /* the number of drivers that have begun */

/* Which batch is next, and its images: one that was begun and is not done, or else what has arrived since. */
inline next_batch() {
    atomic {
        batch = done;
        if
        :: batch == BATCHES -> goto ended
        :: batch < BATCHES && offsets[batch] != 0 -> images = offsets[batch]
        :: else ->
            images = source & ~(offsets[0] | offsets[1]);
            if
            :: images == 0 -> goto ended
            :: else
            fi
        fi
    };
    atomic {                    /* written exclusively: Spark stops a driver that another one has overtaken */
        if
        :: offsets[batch] == 0 -> offsets[batch] = images
        :: offsets[batch] != 0 && offsets[batch] != images -> goto ended
        :: else
        fi
    }
}

/* StreamModels.for_batch: the model of the batch, which never changes once it is decided. */
inline choose_model() {
#ifdef NO_PIN                   /* each attempt at a batch takes the model that the alias names by then */
    atomic { model = alias };
#else
    atomic { model = pin[batch] };
    if
    :: atomic { model == NONE -> model = alias };
#ifdef OVERWRITE_PIN            /* the decision is written over another one that was made meanwhile */
        atomic { pin[batch] = model }
#else
        atomic {                /* written exclusively: the first decision counts */
            if
            :: pin[batch] == NONE -> pin[batch] = model
            :: else -> model = pin[batch]
            fi
        }
#endif
    :: else
    fi;
    atomic {                    /* the decisions of earlier batches are removed: those are done */
        if
        :: batch == 1 -> pin[0] = NONE
        :: else
        fi
    };
#ifndef TRUST_PIN
    atomic {                    /* this batch is done too: another driver may have decided, and removed its decision */
        if
        :: done > batch -> goto ended
        :: else
        fi
    };
#endif
#endif
}

/* build_table, for the images of the batch that the table has not: one commit, a compare-and-swap. */
inline publish() {
    atomic { base = last[model]; todo = images & ~table[model] };
#ifdef LABEL_ALL                /* each attempt labels the whole batch, and does not look what the table has */
    atomic { todo = images };
#endif
    atomic {
        if
#ifdef NO_BASE_CHECK
        :: true ->
#else
        :: last[model] == base ->
#endif
            assert((table[model] & todo) == 0);                 /* no image has two rows */
            assert((table[1 - model] & todo) == 0);             /*   nor is it labelled by two models */
            table[model] = table[model] | todo;
            last[model]++
#ifndef NO_BASE_CHECK
        :: else -> goto ended                                   /* the batch fails, and the stream with it */
#endif
        fi;
        base = 0; todo = 0
    }
}

/* Spark's commit log: the batch is done. It is written exclusively, too. */
inline finish_batch() {
    atomic {
        if
        :: done == batch -> done++
        :: else -> goto ended
        fi;
        assert(IN(images, table[0] | table[1]))                 /* nothing is lost */
    }
}

/* finetune.streams.stream.run_stream */
proctype Driver(byte me) {
    byte batch, images, model, base, todo;

    atomic { begun == me -> begun++ };      /* drivers are alike: they begin in the order of their numbers */
    do
    :: next_batch();
#ifdef COMMIT_FIRST             /* Spark would be told that the batch is done before it is published */
        finish_batch();
#endif
        choose_model();
        publish();
#ifndef COMMIT_FIRST
        finish_batch();
#endif
        atomic { batch = 0; images = 0; model = 0 }
    od;
ended:
    atomic { batch = 0; images = 0; model = 0; base = 0; todo = 0 }
}

/* Another job publishes a version of a table between, such as a compaction; the alias moves; the second image arrives. */
proctype Others() {
    byte base;

    atomic { base = last[0] };
    atomic {
        if
        :: last[0] == base -> last[0]++
        :: else
        fi
    }
}

proctype World() {
    do
    :: alias == 0 -> alias = 1
    :: source == 1 -> source = 3
    :: alias == 1 && source == 3 -> break
    od
}

init {
    atomic {
        pin[0] = NONE; pin[1] = NONE;
        run Driver(0); run Driver(1); run Driver(2);
        run Others();
        run World()
    }
}
